package snapgen.app

import android.app.ActivityManager
import android.content.Context
import android.os.Build
import android.os.Debug
import android.os.PowerManager
import snapgen.core.DeviceState
import snapgen.core.Thermal

private const val MOST_THREADS = 4 // the quick cores of a phone
private const val ROOMY = 3 // parts of the free memory that the model may take

/** What this device has, and how it is. */
class Device(context: Context) {
    private val activities = context.getSystemService(ActivityManager::class.java)
    private val power = context.getSystemService(PowerManager::class.java)

    val threads: Int = Runtime.getRuntime().availableProcessors().coerceIn(1, MOST_THREADS)

    /** Whether one component at a time shall be held: the device is small, or the model large. */
    fun isTight(modelBytes: Long): Boolean {
        val memory = ActivityManager.MemoryInfo().also(activities::getMemoryInfo)
        return activities.isLowRamDevice || memory.lowMemory || modelBytes > memory.availMem / ROOMY
    }

    fun state(): DeviceState = DeviceState("${Build.MANUFACTURER} ${Build.MODEL}, Android ${Build.VERSION.RELEASE}", pss(), thermal())

    private fun pss(): Long = Debug.MemoryInfo().also(Debug::getMemoryInfo).totalPss * 1024L

    private fun thermal(): Thermal? = if (Build.VERSION.SDK_INT < Build.VERSION_CODES.Q) {
        null
    } else {
        when (power.currentThermalStatus) {
            PowerManager.THERMAL_STATUS_NONE -> Thermal.NOMINAL
            PowerManager.THERMAL_STATUS_LIGHT, PowerManager.THERMAL_STATUS_MODERATE -> Thermal.FAIR
            PowerManager.THERMAL_STATUS_SEVERE -> Thermal.SERIOUS
            else -> Thermal.CRITICAL
        }
    }
}
