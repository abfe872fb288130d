package snapgen.core

/** Runs a bundle's components. An app has one for each runtime; calls come from one thread at a time. */
interface Engine : AutoCloseable {
    /** Name and version of the runtime, and the number of its threads, for the record. */
    val about: Map<String, Any>

    /** Make a component ready to run, if it is not. Throws [Refused]. */
    fun load(component: Component)

    /** Give a component's memory back. */
    fun unload(component: Component)

    /** The outputs of a component by name; it is loaded by then. Throws [Refused]. */
    fun run(component: Component, inputs: Map<String, Tensor>): Map<String, Floats>
}

/** What is being done, for the one who waits. */
enum class Stage { LOADING, READING, DRAWING, DECODING }

/** Follows a picture. Both are called from the thread that draws. */
interface Watcher {
    /** Before each part of the work: `done` of `total` are behind it. `step` counts from 1 while it draws. */
    fun begun(stage: Stage, step: Int, done: Int, total: Int) = Unit

    /** Whether the picture shall be given up. */
    fun cancelled(): Boolean = false
}

/** What to draw. `steps`, `negative` and `scale`: null takes the bundle's own. */
class Request(
    val prompt: String,
    val seed: Long,
    val steps: Int? = null,
    val negative: String? = null,
    val scale: Float? = null,
)

/** Milliseconds of a picture. */
class Times(val load: Double, val encode: Double, val steps: List<Double>, val decode: Double, val all: Double)

/** A picture (3, H, W) in -1 ... 1, and how long it took. */
class Drawn(val picture: FloatArray, val times: Times)

private class Row(val inputs: Map<String, Tensor>)

/**
 * Draws pictures with a bundle's components.
 *
 * @param thrifty Hold one component at a time, and none after a picture, drawn or not: less memory, and each picture loads all of
 * them again.
 */
class Pipeline(val bundle: Bundle, val readers: List<PromptReader>, val engine: Engine, private val thrifty: Boolean = false) {
    private val encoders = readers.associateWith { reader ->
        bundle.components[reader.encoder] ?: refuse(Reason.BUNDLE, "The bundle has no ${reader.encoder}; export it again.")
    }
    private var negative: Pair<String, Row>? = null // the last negative prompt, encoded once
    private var loading = 0.0

    /** Load every component, unless one is held at a time. The first time may take long: the runtime prepares the files. */
    fun load(watcher: Watcher = object : Watcher {}) {
        if (thrifty) return
        val all = bundle.components.values
        all.forEachIndexed { i, component ->
            watcher.begun(Stage.LOADING, 0, i, all.size)
            giveUp(watcher)
            engine.load(component)
        }
    }

    /** Give the memory of all components back. */
    fun unload() = bundle.components.values.forEach(engine::unload)

    /** Draw a picture. Throws [Refused]. */
    fun draw(request: Request, watcher: Watcher = object : Watcher {}): Drawn = drawWith(request, emptyMap(), watcher)

    /** As [draw]; `given` has text inputs that no encoder makes: rows of the prompt, then of the negative prompt. */
    internal fun drawWith(request: Request, given: Map<String, List<Tensor>>, watcher: Watcher): Drawn = try {
        drawAll(request, given, watcher)
    } catch (error: Throwable) {
        if (thrifty) unload()
        throw error
    }

    private fun drawAll(request: Request, given: Map<String, List<Tensor>>, watcher: Watcher): Drawn {
        val plan = stepsOf(bundle.manifest, request.steps)
        if (request.prompt.isBlank()) refuse(Reason.EMPTY, "Say what to draw.")
        val total = plan.size + 2
        val marks = ArrayList<Long>()
        loading = 0.0
        fun at(stage: Stage, step: Int, done: Int) {
            marks.add(System.nanoTime())
            watcher.begun(stage, step, done, total)
            giveUp(watcher)
        }
        at(Stage.READING, 0, 0)
        val rows = ArrayList<Row>()
        rows.add(text(request.prompt, given, 0))
        bundle.guidance?.let { rows.add(away(request.negative ?: it.negativePrompt, given)) }
        encoders.values.forEach(::release)
        val text = rows[0].inputs.mapValues { (name, _) -> stacked(rows.map { it.inputs.getValue(name) }) }
        val size = sizeOf(bundle.latent)
        val drawn = noise(request.seed, size * (1 + plan.count { it.added != 0f }))
        var latent = FloatArray(size) { bundle.start * drawn[it] }
        var used = size
        plan.forEachIndexed { i, step ->
            at(Stage.DRAWING, i + 1, i + 1)
            val inputs = text + mapOf(
                "latent" to stacked(rows.map { Floats(intArrayOf(1) + bundle.latent, latent) }),
                "time_features" to stacked(rows.map { Floats(intArrayOf(1, step.features.size), step.features) }),
            )
            val velocity = run(bundle.student, inputs).getValue("velocity").data
            val single = bundle.guidance?.let { guided(velocity, request.scale ?: it.scale) } ?: velocity
            latent = stepped(latent, single, step, drawn, used)
            if (step.added != 0f) used += size
        }
        release(bundle.student)
        at(Stage.DECODING, 0, total - 1)
        val picture = run(bundle.decoder, mapOf("latent" to Floats(intArrayOf(1) + bundle.latent, latent))).getValue("picture")
        release(bundle.decoder)
        marks.add(System.nanoTime())
        val spans = marks.zipWithNext { from, to -> (to - from) / 1e6 }
        val all = (marks.last() - marks.first()) / 1e6
        return Drawn(picture.data, Times(loading, spans.first(), spans.subList(1, spans.size - 1), spans.last(), all))
    }

    /** Run a component, which is loaded for it where it is not. */
    fun run(component: Component, inputs: Map<String, Tensor>): Map<String, Floats> {
        val begun = System.nanoTime()
        engine.load(component)
        loading += (System.nanoTime() - begun) / 1e6
        return engine.run(component, inputs)
    }

    private fun release(component: Component) {
        if (thrifty) engine.unload(component)
    }

    private fun giveUp(watcher: Watcher) {
        if (watcher.cancelled()) refuse(Reason.CANCELLED, "Cancelled.")
    }

    private fun away(prompt: String, given: Map<String, List<Tensor>>): Row {
        negative?.takeIf { it.first == prompt && given.isEmpty() }?.let { return it.second }
        return text(prompt, given, 1).also { negative = prompt to it }
    }

    /** The student's text inputs of one prompt, a row each. */
    private fun text(prompt: String, given: Map<String, List<Tensor>>, kind: Int): Row {
        val found = HashMap<String, Tensor>()
        for ((reader, encoder) in encoders) {
            val read = reader.read(prompt)
            val shape = intArrayOf(1, reader.length)
            found += run(encoder, mapOf("tokens" to Ints(shape, read.tokens), "mask" to Floats(shape, read.mask)))
            val seen = read.mask.copyOfRange(reader.dropped, reader.length)
            found["${reader.stream}_mask"] = Floats(intArrayOf(1, seen.size), seen)
        }
        for (port in bundle.student.inputs) {
            if (port.name.removeSuffix("_mask").removeSuffix("_pooled") in bundle.absent) {
                val shape = port.shape.copyOf().also { it[0] = 1 }
                found[port.name] = Floats(shape, FloatArray(sizeOf(shape)))
            }
        }
        given.forEach { (name, rows) -> found[name] = rows[kind] }
        return Row(found)
    }
}
