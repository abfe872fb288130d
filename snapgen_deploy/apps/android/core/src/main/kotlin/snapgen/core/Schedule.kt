package snapgen.core

import kotlin.math.cos
import kotlin.math.exp
import kotlin.math.ln
import kotlin.math.sin

/** The samplers that this app draws with. */
val SAMPLERS = setOf("euler", "linear")

/**
 * A step of the sampler: noise level, the next one, and the student's features of it.
 *
 * @param keep What the step keeps of the latent, and takes of the student's output (`scale`) and of new noise (`added`).
 */
class Step(
    val sigma: Double,
    val next: Double,
    val features: FloatArray,
    val keep: Float = 1f,
    val scale: Float = (next - sigma).toFloat(),
    val added: Float = 0f,
)

/** The steps of a picture. `count`: other than the model's own, with which its pictures are right. */
fun stepsOf(manifest: Json, count: Int? = null): List<Step> {
    val schedule = manifest["schedule"]
    val sigmas = schedule["sigmas"].numbers
    val features = schedule["time_features"]
    val own = sigmas.size - 1
    if (count == null || count == own) {
        val rules = schedule.find("coefficients")?.items
        return features["values"].items.mapIndexed { i, row ->
            val rule = rules?.get(i)?.floats ?: return@mapIndexed Step(sigmas[i], sigmas[i + 1], row.floats)
            Step(sigmas[i], sigmas[i + 1], row.floats, rule[0], rule[1], rule[2])
        }
    }
    if (samplerOf(manifest) != "euler" || schedule.find("timesteps") != null) {
        refuse(Reason.BUNDLE, "This model draws in $own steps, no other number.")
    }
    val shift = schedule["shift"].number
    val levels = List(count) { 1 - it.toDouble() / count }.map { shift * it / (1 + (shift - 1) * it) }
    return levels.mapIndexed { i, sigma ->
        Step(sigma, levels.getOrElse(i + 1) { 0.0 }, timeFeatures(sigma, features["count"].int))
    }
}

internal fun samplerOf(manifest: Json): String = manifest["schedule"].find("sampler")?.text ?: "euler"

/** Cosines, then sines, of 1000 * sigma at falling frequencies. */
fun timeFeatures(sigma: Double, count: Int): FloatArray {
    val half = count / 2
    val out = FloatArray(count)
    for (i in 0 until half) {
        val frequency = exp(((-ln(10000.0) * i).toFloat() / half).toDouble()).toFloat()
        val angle = (1000f * sigma.toFloat() * frequency).toDouble()
        out[i] = cos(angle).toFloat()
        out[half + i] = sin(angle).toFloat()
    }
    return out
}

/** One step, in single precision; `fresh` begins at `from` with new noise, where the step adds some. */
fun stepped(latent: FloatArray, velocity: FloatArray, step: Step, fresh: FloatArray, from: Int): FloatArray =
    FloatArray(latent.size) {
        val moved = step.keep * latent[it] + step.scale * velocity[it]
        if (step.added == 0f) moved else moved + step.added * fresh[from + it]
    }

/** Classifier-free guidance of the rows (prompt, negative prompt): negative + scale * (prompt - negative). */
fun guided(velocity: FloatArray, scale: Float): FloatArray {
    val half = velocity.size / 2
    return FloatArray(half) { velocity[half + it] + scale * (velocity[it] - velocity[half + it]) }
}
