package snapgen.app

import android.content.res.AssetManager
import java.io.File
import java.io.IOException
import snapgen.core.Bundle
import snapgen.core.CONFORMANCE
import snapgen.core.FileEntry
import snapgen.core.Json
import snapgen.core.MANIFEST
import snapgen.core.Reason
import snapgen.core.Refused
import snapgen.core.checkHash
import snapgen.core.entryOf
import snapgen.core.sha256

private const val ASSETS = "bundle"

/**
 * The bundle as files: runtimes map them into memory, which assets of an app do not allow.
 *
 * They are copied when the app first starts and after an update with another bundle, each held against its hash on the way; a
 * folder that is there was copied whole. Old ones go.
 */
class ModelFiles(private val assets: AssetManager, private val root: File) {
    /** The bundle, whose files were all held against their hashes. `told` gets a share of 1. */
    fun open(told: (Double) -> Unit): Bundle {
        val folder = File(root, Shipped.MANIFEST_SHA256.take(16))
        if (!folder.isDirectory) {
            root.listFiles()?.forEach { it.deleteRecursively() }
            copy(folder, told)
            return bundleIn(folder)
        }
        try {
            return bundleIn(folder).also { it.check(counting(it.files, told)) }
        } catch (error: Refused) {
            folder.deleteRecursively() // the next start copies the files again
            throw error
        }
    }

    private fun bundleIn(folder: File) = Bundle.open(folder, Shipped.TARGET, Shipped.MANIFEST_SHA256)

    private fun copy(folder: File, told: (Double) -> Unit) {
        val part = File(root, "${folder.name}.part")
        copyFile(MANIFEST, part, Shipped.MANIFEST_SHA256)
        val manifest = Json.parse(File(part, MANIFEST).readText(), MANIFEST)
        copyFile(CONFORMANCE, part, entryOf(manifest["files"][CONFORMANCE]).sha256)
        val files = bundleIn(part).shipped
        val bytes = files.values.sumOf { it.bytes }
        if (root.usableSpace < bytes) {
            throw Refused(Reason.RUNTIME, "The model needs ${bytes / 1_000_000} MB of free storage. Make room and try again.")
        }
        val counted = counting(files, told)
        for ((name, entry) in files) copyFile(name, part, entry.sha256, counted)
        if (!part.renameTo(folder)) throw Refused(Reason.RUNTIME, "The model's files cannot be kept on this device.")
    }

    private fun counting(files: Map<String, FileEntry>, told: (Double) -> Unit): (Int) -> Unit {
        val total = files.values.sumOf { it.bytes }.toDouble()
        var done = 0L
        return {
            done += it
            told(done / total)
        }
    }

    private fun copyFile(name: String, part: File, expected: String, counted: (Int) -> Unit = {}) {
        val place = File(part, name)
        try {
            place.parentFile?.mkdirs()
            val found = assets.open("$ASSETS/$name").use { from ->
                place.outputStream().use { to -> sha256(from, counted) { bytes, count -> to.write(bytes, 0, count) } }
            }
            checkHash(name, found, expected)
        } catch (error: IOException) {
            throw Refused(Reason.RUNTIME, "$name cannot be unpacked (${error.message}). Make room and try again.", error)
        }
    }
}
