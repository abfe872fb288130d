// Runs the app's core for tests: a JSON document a line comes in, answers go out; components are run by who asks.

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.Base64
import java.util.Date
import snapgen.core.Bundle
import snapgen.core.BundleTest
import snapgen.core.Component
import snapgen.core.DeviceState
import snapgen.core.Engine
import snapgen.core.Floats
import snapgen.core.Ints
import snapgen.core.Json
import snapgen.core.Pipeline
import snapgen.core.Recorder
import snapgen.core.Recording
import snapgen.core.Refused
import snapgen.core.Request
import snapgen.core.Stage
import snapgen.core.Tensor
import snapgen.core.Thermal
import snapgen.core.Tokenizer
import snapgen.core.Watcher
import snapgen.core.conformance
import snapgen.core.jsonText
import snapgen.core.noise
import snapgen.core.readersOf
import snapgen.core.timeFeatures
import snapgen.core.toPixels

private fun say(vararg fields: Pair<String, Any?>) = println(jsonText(linkedMapOf(*fields)))

private fun packed(numbers: FloatArray): String {
    val bytes = ByteBuffer.allocate(4 * numbers.size).order(ByteOrder.LITTLE_ENDIAN)
    bytes.asFloatBuffer().put(numbers)
    return Base64.getEncoder().encodeToString(bytes.array())
}

private fun packed(tensor: Tensor): Map<String, Any> = when (tensor) {
    is Floats -> mapOf("shape" to tensor.shape.asList(), "floats" to packed(tensor.data))
    is Ints -> mapOf("shape" to tensor.shape.asList(), "ints" to tensor.data.asList())
}

private fun unpacked(about: Json): Floats {
    val bytes = ByteBuffer.wrap(Base64.getDecoder().decode(about["floats"].text)).order(ByteOrder.LITTLE_ENDIAN)
    return Floats(about["shape"].ints, FloatArray(bytes.capacity() / 4).also { bytes.asFloatBuffer().get(it) })
}

/** Whoever asked runs the components. */
private class Asking : Engine {
    override val about = mapOf("provider" to "probe", "threads" to 1)
    private val loaded = HashSet<String>()

    override fun load(component: Component) {
        if (loaded.add(component.role)) say("loaded" to component.role)
    }

    override fun unload(component: Component) {
        if (loaded.remove(component.role)) say("unloaded" to component.role)
    }

    override fun run(component: Component, inputs: Map<String, Tensor>): Map<String, Floats> {
        check(component.role in loaded)
        say("call" to component.role, "inputs" to inputs.mapValues { packed(it.value) })
        return Json.parse(readln(), "answer").fields.mapValues { unpacked(it.value) }
    }

    override fun close() = Unit
}

private fun bundleOf(asked: Json) = Bundle.open(File(asked["bundle"].text), asked["target"].text, asked.find("sha256")?.text)

private fun answer(asked: Json) {
    when (val task = asked["do"].text) {
        "conformance" -> {
            val bundle = bundleOf(asked)
            val readers = readersOf(bundle)
            val pipeline = if (asked["runs"].truth) Pipeline(bundle, readers, Asking()) else null
            for (line in conformance(bundle, readers, pipeline)) {
                say("line" to line.line, "passed" to line.passed, "detail" to line.detail)
            }
        }
        "check" -> {
            var bytes = 0L
            bundleOf(asked).check { bytes += it }
            say("bytes" to bytes)
        }
        "draw" -> {
            val bundle = bundleOf(asked)
            val pipeline = Pipeline(bundle, readersOf(bundle), Asking(), asked["thrifty"].truth)
            for (one in asked["requests"].items) draw(pipeline, one)
        }
        "tokens" -> {
            val file = File(asked["file"].text)
            val tokenizer = Tokenizer(Json.parse(file.readText(), file.name))
            say("ids" to asked["texts"].texts.map { text -> tokenizer.encode(text, asked["special"].truth).map { it.id } })
        }
        "noise" -> say("floats" to packed(noise(asked["seed"].text.toLong(), asked["count"].int)))
        "features" -> say("floats" to packed(timeFeatures(asked["sigma"].number, asked["count"].int)))
        "json" -> say("text" to Json.parse(asked["text"].text, "text")["x"].text)
        "record" -> record(asked)
        "tests" -> {
            System.setProperty("bundle", asked["bundle"].text)
            System.setProperty("target", asked["target"].text)
            val all = BundleTest::class.java.declaredMethods.filter { it.isAnnotationPresent(kotlin.test.Test::class.java) }
            for (test in all) {
                val fault = runCatching { test.invoke(BundleTest()) }.exceptionOrNull()
                say("test" to test.name, "fault" to (fault?.cause ?: fault)?.toString())
            }
        }
        else -> error("no task $task")
    }
}

private fun draw(pipeline: Pipeline, asked: Json) {
    val limit = asked.find("cancelled")?.int
    var begun = 0
    val watcher = object : Watcher {
        override fun begun(stage: Stage, step: Int, done: Int, total: Int) {
            begun++
            say("stage" to stage.name, "step" to step, "done" to done, "total" to total)
        }

        override fun cancelled() = limit != null && begun >= limit
    }
    val request = Request(
        asked["prompt"].text, asked["seed"].text.toLong(), asked.find("steps")?.int, asked.find("negative")?.text,
        asked.find("scale")?.number?.toFloat(),
    )
    val drawn = pipeline.draw(request, watcher)
    val pixels = toPixels(drawn.picture, pipeline.bundle.height, pipeline.bundle.width)
    say("picture" to packed(drawn.picture), "pixels" to pixels.asList(), "steps" to drawn.times.steps.size)
}

private fun record(asked: Json) {
    val bundle = bundleOf(asked)
    val pipeline = Pipeline(bundle, readersOf(bundle), Asking())
    val recorder = Recorder(File(asked["file"].text), asked["kept"].int)
    val recording = Recording("android", bundle, pipeline.engine)
    val request = Request("a red ring", 7)
    val drawn = pipeline.draw(request)
    recorder.add(recording.drawn(request, Date(0), drawn.times, DeviceState("a \"phone\"", 1234567, Thermal.FAIR)))
    val unknown = runCatching { pipeline.draw(Request("zebra", 8, steps = 2)) }.exceptionOrNull()!!
    recorder.add(recording.failed(Request("zebra", 8, steps = 2), Date(1), unknown, DeviceState("b", null, null)))
    repeat(asked["more"].int) { recorder.add("{}") }
    say("lines" to recorder.lines())
    if (asked["clear"].truth) recorder.clear()
}

fun main() {
    while (true) {
        val line = readlnOrNull() ?: return
        try {
            answer(Json.parse(line, "task"))
            say("done" to true)
        } catch (error: Refused) {
            say("refused" to error.reason.word, "said" to error.message)
        }
        System.out.flush()
    }
}
