package snapgen.app

import android.content.Context
import android.graphics.Bitmap
import java.io.File
import java.util.Date
import java.util.concurrent.Executors
import kotlinx.coroutines.asCoroutineDispatcher
import kotlinx.coroutines.isActive
import kotlinx.coroutines.withContext
import snapgen.core.Bundle
import snapgen.core.Engine
import snapgen.core.Line
import snapgen.core.Pipeline
import snapgen.core.Recorder
import snapgen.core.Recording
import snapgen.core.Request
import snapgen.core.Stage
import snapgen.core.Watcher
import snapgen.core.conformance
import snapgen.core.readersOf
import snapgen.core.toPixels

/** A picture for the screen. */
class Shown(val bitmap: Bitmap, val prompt: String, val seconds: Double)

/** The model of this app: it is opened once, and draws on a thread of its own, one picture after the other. */
class Drawer(context: Context) {
    private val files = ModelFiles(context.assets, File(context.filesDir, "bundle"))
    private val device = Device(context)
    private val thread = Executors.newSingleThreadExecutor { Thread(it, "drawing") }.asCoroutineDispatcher()
    private var opened: Opened? = null
    val record = Recorder(File(context.filesDir, "pictures.jsonl"))

    private class Opened(val bundle: Bundle, val engine: Engine, val pipeline: Pipeline, val recording: Recording)

    /** Unpack and check the files, and load them where there is memory for all of them. */
    suspend fun open(told: (Double) -> Unit, watcher: Watcher) = withContext(thread) {
        if (opened != null) return@withContext
        val bundle = files.open(told)
        val engine = Shipped.engine(bundle.folder, device.threads)
        val pipeline = Pipeline(bundle, readersOf(bundle), engine, device.isTight(bundle.files.values.sumOf { it.bytes }))
        pipeline.load(watcher)
        opened = Opened(bundle, engine, pipeline, Recording("android", bundle, engine))
    }

    /** Draw a picture; cancelling the coroutine gives it up before its next step. Throws [snapgen.core.Refused]. */
    suspend fun draw(request: Request, told: (Stage, Int, Int) -> Unit): Shown = withContext(thread) {
        val now = checkNotNull(opened)
        val begun = Date()
        val watcher = object : Watcher {
            override fun begun(stage: Stage, step: Int, done: Int, total: Int) = told(stage, step, total - 2)

            override fun cancelled() = !isActive
        }
        try {
            val drawn = now.pipeline.draw(request, watcher)
            val (height, width) = now.bundle.height to now.bundle.width
            val bitmap = Bitmap.createBitmap(toPixels(drawn.picture, height, width), width, height, Bitmap.Config.ARGB_8888)
            record.add(now.recording.drawn(request, begun, drawn.times, device.state()))
            Shown(bitmap, request.prompt, drawn.times.all / 1000)
        } catch (error: Exception) {
            record.add(now.recording.failed(request, begun, error, device.state()))
            throw error
        }
    }

    /** Run conformance.json on this device. */
    suspend fun test(): List<Line> = withContext(thread) {
        checkNotNull(opened).let { conformance(it.bundle, it.pipeline.readers, it.pipeline).toList() }
    }

    /** Give the model's memory back; the next picture loads it again. */
    suspend fun release() = withContext(thread) { opened?.pipeline?.unload() ?: Unit }
}
