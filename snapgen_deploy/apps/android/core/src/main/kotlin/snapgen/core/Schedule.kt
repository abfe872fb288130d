package snapgen.core

import kotlin.math.cos
import kotlin.math.exp
import kotlin.math.ln
import kotlin.math.sin

/** A step of the sampler: noise level, the next one, and the student's features of it. */
class Step(val sigma: Double, val next: Double, val features: FloatArray)

/** The steps of a picture. `count`: other than the model's own, with which its pictures are right. */
fun stepsOf(manifest: Json, count: Int? = null): List<Step> {
    val schedule = manifest["schedule"]
    val sigmas = schedule["sigmas"].numbers
    val features = schedule["time_features"]
    if (count == null || count == sigmas.size - 1) {
        return features["values"].items.mapIndexed { i, row -> Step(sigmas[i], sigmas[i + 1], row.floats) }
    }
    val shift = schedule["shift"].number
    val levels = List(count) { 1 - it.toDouble() / count }.map { shift * it / (1 + (shift - 1) * it) }
    return levels.mapIndexed { i, sigma ->
        Step(sigma, levels.getOrElse(i + 1) { 0.0 }, timeFeatures(sigma, features["count"].int))
    }
}

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

/** One step of Euler's method, in single precision. */
fun stepped(latent: FloatArray, velocity: FloatArray, step: Step): FloatArray {
    val width = (step.next - step.sigma).toFloat()
    return FloatArray(latent.size) { latent[it] + width * velocity[it] }
}

/** Classifier-free guidance of the rows (prompt, negative prompt): negative + scale * (prompt - negative). */
fun guided(velocity: FloatArray, scale: Float): FloatArray {
    val half = velocity.size / 2
    return FloatArray(half) { velocity[half + it] + scale * (velocity[it] - velocity[half + it]) }
}
