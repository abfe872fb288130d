package snapgen.core

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.math.log10
import kotlin.math.max
import kotlin.math.min
import kotlin.math.sqrt

/** An array with a shape, in C order. */
sealed class Tensor {
    abstract val shape: IntArray
}

/** Numbers of single precision. */
class Floats(override val shape: IntArray, val data: FloatArray) : Tensor()

/** Whole numbers of 32 bits. */
class Ints(override val shape: IntArray, val data: IntArray) : Tensor()

internal fun sizeOf(shape: IntArray): Int = shape.fold(1) { product, one -> product * one }

/** Arrays with one row each, one after the other. */
fun stacked(rows: List<Tensor>): Tensor {
    if (rows.size == 1) return rows[0]
    val shape = rows[0].shape.copyOf().also { it[0] = rows.size }
    if (rows[0] is Ints) return Ints(shape, rows.flatMap { (it as Ints).data.asList() }.toIntArray())
    val data = FloatArray(sizeOf(shape))
    var at = 0
    for (row in rows) {
        val part = (row as Floats).data
        part.copyInto(data, at)
        at += part.size
    }
    return Floats(shape, data)
}

/** ||got - expected|| / ||expected||. */
fun relativeError(got: FloatArray, expected: FloatArray): Double {
    if (got.size != expected.size) return Double.NaN
    var difference = 0.0
    var scale = 0.0
    for (i in got.indices) {
        difference += (got[i].toDouble() - expected[i]).let { it * it }
        scale += expected[i].toDouble().let { it * it }
    }
    return sqrt(difference) / max(sqrt(scale), 1e-12)
}

/** Peak signal-to-noise ratio in dB of two pictures in -1 ... 1, at most 200. */
fun psnr(got: FloatArray, expected: FloatArray): Double {
    if (got.size != expected.size) return Double.NaN
    var sum = 0.0
    for (i in got.indices) {
        val difference = min(1f, max(-1f, got[i])).toDouble() - min(1f, max(-1f, expected[i]))
        sum += difference * difference
    }
    return if (sum.isNaN()) sum else min(200.0, 10 * log10(4.0 * got.size / max(sum, 1e-300)))
}

/** The arrays of a .safetensors file by name; those of other types than F32 and I32 are left out. */
fun readSafetensors(file: File): Map<String, Tensor> {
    val bytes = ByteBuffer.wrap(readable(file) { it.readBytes() }).order(ByteOrder.LITTLE_ENDIAN)
    val length = if (bytes.capacity() < 8) -1 else bytes.getLong(0)
    if (length < 0 || length > bytes.capacity() - 8) refuse(Reason.BUNDLE, "${file.name} is no .safetensors file.")
    val header = Json.parse(String(bytes.array(), 8, length.toInt(), Charsets.UTF_8), file.name)
    val found = HashMap<String, Tensor>()
    for ((name, about) in header.fields) {
        if (name == "__metadata__") continue
        val shape = about["shape"].ints
        val (from, to) = about["data_offsets"].items.map { it.whole }
        if (to - from != 4L * sizeOf(shape) || 8 + length + to > bytes.capacity()) continue
        val part = bytes.duplicate().order(ByteOrder.LITTLE_ENDIAN)
        part.position((8 + length + from).toInt())
        when (about["dtype"].text) {
            "F32" -> found[name] = Floats(shape, FloatArray(sizeOf(shape)).also { part.asFloatBuffer().get(it) })
            "I32" -> found[name] = Ints(shape, IntArray(sizeOf(shape)).also { part.asIntBuffer().get(it) })
        }
    }
    return found
}
