package snapgen.core

import java.io.File
import kotlin.test.Test
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith

/** The bundle of this project, without a runtime: hashes, tokens, noise, schedule. */
class BundleTest {
    private val folder = File(System.getProperty("bundle"))
    private val bundle = Bundle.open(folder, System.getProperty("target"), null)

    @Test
    fun filesAreTheExportedOnes() {
        var bytes = 0L
        bundle.check { bytes += it }
        assertEquals(bundle.files.values.sumOf { it.bytes }, bytes)
    }

    @Test
    fun everyLineThatNeedsNoRuntimePasses() {
        val lines = conformance(bundle, readersOf(bundle), null).toList()
        assertEquals(emptyList(), lines.filter { it.passed == false }.map { "${it.line}: ${it.detail}" })
        assertEquals(setOf("call", "picture"), lines.filter { it.passed == null }.map { it.line.substringBefore(' ') }.toSet())
    }

    @Test
    fun noiseHasTheBitsOfTheDocumentation() {
        val bits = noise(42, 4096).map { it.toRawBits().toUInt().toString(16).padStart(8, '0') }
        assertEquals(listOf("bf785e5a", "3e46acec", "bf9e28cd", "3ff6433e"), bits.take(4))
        assertEquals("3d40aedb", bits.last())
        assertContentEquals(longArrayOf(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8), philox(0, 0))
    }

    @Test
    fun aChangedManifestIsRefused() {
        val error = assertFailsWith<Refused> { Bundle.open(folder, bundle.target, "0".repeat(64)) }
        assertEquals(Reason.HASH, error.reason)
    }
}
