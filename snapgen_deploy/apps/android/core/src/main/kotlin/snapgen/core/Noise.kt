package snapgen.core

import kotlin.math.cos
import kotlin.math.ln
import kotlin.math.sin
import kotlin.math.sqrt

/** The only generator that this app makes; docs/noise.md of snapgen-deploy defines it. */
const val GENERATOR = "philox4x32-10"

private const val ROUNDS = 10
private const val MULTIPLIER_A = 0xD2511F53L
private const val MULTIPLIER_C = 0xCD9E8D57L
private const val WEYL_A = 0x9E3779B9L
private const val WEYL_B = 0xBB67AE85L
private const val WORD = 0xFFFFFFFFL
private const val UNIT = 1.0 / (1 shl 24)

/** Philox4x32-10: four 32-bit words of a counter (block, 0, 0, 0) and a key of two words. */
fun philox(block: Long, key: Long): LongArray {
    var a = block and WORD
    var b = 0L
    var c = 0L
    var d = 0L
    var k = key and WORD
    var m = key ushr 32
    repeat(ROUNDS) {
        val left = a * MULTIPLIER_A
        val right = c * MULTIPLIER_C
        a = (right ushr 32) xor b xor k
        b = right and WORD
        c = (left ushr 32) xor d xor m
        d = left and WORD
        k = (k + WEYL_A) and WORD
        m = (m + WEYL_B) and WORD
    }
    return longArrayOf(a, b, c, d)
}

/** `count` standard normal numbers of a seed: the same bits in every language, but for the platform's ln, cos and sin. */
fun noise(seed: Long, count: Int): FloatArray {
    val out = FloatArray(count)
    for (block in 0 until (count + 3) / 4) {
        val words = philox(block.toLong(), seed)
        for (j in intArrayOf(0, 2)) {
            val at = 4 * block + j
            val radius = sqrt(-2.0 * ln(((words[j] ushr 8) + 1) * UNIT).toFloat()).toFloat()
            val turn = (words[j + 1] ushr 8) * (UNIT * 2.0 * Math.PI)
            if (at < count) out[at] = radius * cos(turn).toFloat()
            if (at + 1 < count) out[at + 1] = radius * sin(turn).toFloat()
        }
    }
    return out
}
