package snapgen.core

import kotlin.math.max
import kotlin.math.min
import kotlin.math.round

private const val OPAQUE = 0xFF shl 24

/** A picture (3, H, W) in -1 ... 1 as pixels of 32 bits (alpha, red, green, blue), row by row; halves go to even numbers. */
fun toPixels(picture: FloatArray, height: Int, width: Int): IntArray {
    val size = height * width
    return IntArray(size) { i ->
        var pixel = OPAQUE
        for (c in 0 until 3) {
            val value = picture[c * size + i]
            if (!value.isFinite()) refuse(Reason.FINITE, "The model returned values that are not finite on this device.")
            pixel = pixel or (round((min(1f, max(-1f, value)) + 1f) * 127.5f).toInt() shl (16 - 8 * c))
        }
        pixel
    }
}
