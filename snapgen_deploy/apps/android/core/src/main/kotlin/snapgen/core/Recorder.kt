package snapgen.core

import java.io.File
import java.text.SimpleDateFormat
import java.util.Date
import java.util.Locale
import java.util.TimeZone
import kotlin.math.roundToLong

/** How hot the device says it is. */
enum class Thermal { NOMINAL, FAIR, SERIOUS, CRITICAL }

/** What a device tells of itself. `memory`: bytes of this process; null where it is not known. */
class DeviceState(val name: String, val memory: Long?, val thermal: Thermal?)

/** Keeps a line for each picture in a file of this app, and sends nothing. docs/formats.md of snapgen-deploy has its fields. */
class Recorder(private val file: File, private val kept: Int = 500) {
    /** The lines, the oldest first. */
    @Synchronized
    fun lines(): List<String> = if (file.isFile) file.readLines().filter { it.isNotBlank() } else emptyList()

    /** Add a line; beyond `kept` the oldest go. */
    @Synchronized
    fun add(line: String) {
        val now = (lines() + line).takeLast(kept)
        val part = File(file.parentFile, "${file.name}.part")
        part.writeText(now.joinToString("\n", postfix = "\n"))
        part.renameTo(file)
    }

    /** Forget all lines. */
    @Synchronized
    fun clear() {
        file.delete()
    }
}

/** What the lines of one app have in common. */
class Recording(private val app: String, private val bundle: Bundle, private val engine: Engine) {
    /** The line of a picture that was drawn. */
    fun drawn(request: Request, begun: Date, times: Times, device: DeviceState): String =
        line(request, begun, device, mapOf("ok" to true, "ms" to rounded(times)))

    /** The line of a picture that was not: `why` is a [Reason], or `failed`. */
    fun failed(request: Request, begun: Date, error: Throwable, device: DeviceState): String =
        line(request, begun, device, mapOf("ok" to false, "why" to ((error as? Refused)?.reason?.word ?: "failed")))

    private fun line(request: Request, begun: Date, device: DeviceState, rest: Map<String, Any>): String {
        val fields = linkedMapOf<String, Any>(
            "app" to app,
            "bundle" to bundle.name,
            "width" to bundle.manifest["width"].text,
            "target" to bundle.target,
            "precision" to bundle.precision,
            "runtime" to engine.about,
            "device" to device.name,
            "time" to iso(begun),
            "seed" to request.seed.toString(),
            "steps" to (request.steps ?: bundle.steps),
        )
        fields += rest
        device.memory?.let { fields["memory"] = mapOf("process" to it) }
        device.thermal?.let { fields["thermal"] = it.name.lowercase() }
        return jsonText(fields)
    }

    private fun rounded(times: Times): Map<String, Any> = linkedMapOf(
        "load" to times.load.roundToLong(),
        "encode" to times.encode.roundToLong(),
        "steps" to times.steps.map { it.roundToLong() },
        "decode" to times.decode.roundToLong(),
        "all" to times.all.roundToLong(),
    )

    private fun iso(time: Date): String =
        SimpleDateFormat("yyyy-MM-dd'T'HH:mm:ss.SSS'Z'", Locale.ROOT).apply { timeZone = TimeZone.getTimeZone("UTC") }.format(time)
}
