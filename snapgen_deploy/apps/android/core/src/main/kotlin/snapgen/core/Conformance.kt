package snapgen.core

import kotlin.math.abs
import kotlin.math.sqrt

/** A case of conformance.json: which line it is, whether it passed (null: not run), and what it was about. */
class Line(val line: String, val passed: Boolean?, val detail: String)

/**
 * Run the cases of conformance.json, from top to bottom.
 *
 * @param pipeline With a runtime; null: calls and picture are not run, and their lines say so.
 */
fun conformance(bundle: Bundle, readers: List<PromptReader>, pipeline: Pipeline?): Sequence<Line> = sequence {
    for (reader in readers) for (case in reader.rule["cases"].items) yield(tokenizerLine(reader, case))
    for (case in bundle.cases["noise"]["cases"].items) yield(noiseLine(bundle.cases["noise"], case))
    val steps = stepsOf(bundle.manifest)
    bundle.cases["schedule"]["steps"].items.forEachIndexed { i, step ->
        yield(scheduleLine(bundle.cases["schedule"]["tolerance"].number, step, steps[i], i))
    }
    val calls = bundle.cases["calls"].items
    val picture = bundle.cases.find("picture")
    if (pipeline == null) {
        for (call in calls) yield(Line("call ${call["component"].text}", null, "no runtime here"))
        if (picture != null) yield(Line("picture", null, "no runtime here"))
        return@sequence
    }
    val rows = Rows(bundle.vectors(), steps)
    for (call in calls) yieldAll(callLines(pipeline, call, rows))
    if (picture != null) yield(pictureLine(pipeline, picture, rows))
}

private fun tokenizerLine(reader: PromptReader, case: Json): Line {
    val text = case["text"].text
    val refused = case.find("refused")?.text
    val passed = try {
        val read = reader.read(text)
        refused == null && read.tokens.contentEquals(case["tokens"].ints) && read.mask.contentEquals(case["mask"].floats)
    } catch (error: Refused) {
        error.reason.word == refused
    }
    val short = if (text.length > 40) "${text.take(40)}…" else text
    return Line("tokenizer ${reader.encoder}", passed, "“$short”" + (refused?.let { ", refused: $it" } ?: ""))
}

private fun noiseLine(about: Json, case: Json): Line {
    val seed = case["seed"].text
    val count = case["count"].int
    val tolerance = about["tolerance"].number
    val made = noise(seed.toLong(), count)
    val mean = made.sumOf { it.toDouble() } / count
    val deviation = sqrt(made.sumOf { (it - mean) * (it - mean) } / count)
    val passed = about["generator"].text == GENERATOR && ends(made, case, tolerance) &&
        close(doubleArrayOf(mean, deviation), doubleArrayOf(case["mean"].number, case["deviation"].number), tolerance)
    return Line("noise", passed, "seed $seed, $count numbers")
}

private fun scheduleLine(tolerance: Double, step: Json, made: Step, number: Int): Line {
    val levels = doubleArrayOf(step["sigma"].number, step["next"].number)
    val rule = doubleArrayOf(made.keep.toDouble(), made.scale.toDouble(), made.added.toDouble())
    val passed = close(doubleArrayOf(made.sigma, made.next), levels, tolerance) &&
        ends(made.features, step["time_features"], tolerance) &&
        (step.find("coefficients")?.numbers?.let { close(rule, it, tolerance) } ?: true)
    return Line("schedule", passed, "step ${number + 1}, level ${made.sigma}")
}

private fun callLines(pipeline: Pipeline, call: Json, rows: Rows): List<Line> {
    val component = pipeline.bundle.components.getValue(call["component"].text)
    val limit = call["error"][pipeline.bundle.target].number
    val made = pipeline.run(component, call["inputs"].fields.mapValues { (_, told) -> rows.stack(told) })
    return call["outputs"].fields.map { (name, told) ->
        val found = relativeError(made.getValue(name).data, (rows.stack(told) as Floats).data)
        Line("call ${component.role}", found <= limit, "relative error ${"%.1e".format(java.util.Locale.ROOT, found)}, at most $limit")
    }
}

private fun pictureLine(pipeline: Pipeline, case: Json, rows: Rows): Line {
    val given = case["text"].fields.mapValues { (_, told) -> told.items.map(rows::row) }
    val request = Request(case["prompt"].text, case["seed"].text.toLong())
    val drawn = pipeline.drawWith(request, given, object : Watcher {})
    val found = psnr(drawn.picture, (rows.row(case["expected"]) as Floats).data)
    val limit = case["psnr"][pipeline.bundle.target].number
    return Line("picture", found >= limit, "${"%.1f".format(java.util.Locale.ROOT, found)} dB, at least $limit")
}

/** Rows of the test vectors, and of the schedule's features, as cases name them. */
private class Rows(private val arrays: Map<String, Tensor>, private val steps: List<Step>) {
    fun stack(told: Json): Tensor = stacked(told.items.map(::row))

    fun row(told: Json): Tensor {
        told.find("step")?.let { step -> return steps[step.int].features.let { Floats(intArrayOf(1, it.size), it) } }
        val name = told["array"].text
        val index = told["index"].ints
        val array = arrays[name] ?: refuse(Reason.BUNDLE, "The test vectors have no $name; export the bundle again.")
        val inner = array.shape.copyOfRange(index.size, array.shape.size)
        val size = sizeOf(inner)
        val begin = index.foldIndexed(0) { axis, sum, i -> sum * array.shape[axis] + i } * size
        val shape = intArrayOf(1) + inner
        return when (array) {
            is Floats -> Floats(shape, array.data.copyOfRange(begin, begin + size))
            is Ints -> Ints(shape, array.data.copyOfRange(begin, begin + size))
        }
    }
}

private fun FloatArray.doubles(): DoubleArray = DoubleArray(size) { this[it].toDouble() }

private fun ends(made: FloatArray, case: Json, tolerance: Double): Boolean {
    val first = case["first"].numbers
    val last = case["last"].numbers
    return made.size >= first.size &&
        close(made.copyOfRange(0, first.size).doubles(), first, tolerance) &&
        close(made.copyOfRange(made.size - last.size, made.size).doubles(), last, tolerance)
}

private fun close(got: DoubleArray, expected: DoubleArray, tolerance: Double): Boolean =
    got.size == expected.size && got.indices.all { abs(got[it] - expected[it]) <= tolerance }
