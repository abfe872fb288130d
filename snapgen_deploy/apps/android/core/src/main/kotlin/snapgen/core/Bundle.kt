package snapgen.core

import java.io.File
import java.io.InputStream
import java.security.MessageDigest

const val MANIFEST = "manifest.json"
const val CONFORMANCE = "conformance.json"

/** What is known of a file: its length, and its SHA-256 in hexadecimal. */
class FileEntry(val bytes: Long, val sha256: String)

/** An input or output of a component. */
class Port(val name: String, val shape: IntArray)

/** One network of the model. `entry` is its function or method where a file holds several. */
class Component(
    val role: String,
    val path: String,
    val entry: String?,
    val inputs: List<Port>,
    val outputs: List<Port>,
    val files: Map<String, FileEntry>,
)

/** Guidance as the bundle asks for it. */
class Guidance(val scale: Float, val negativePrompt: String)

/** A bundle in a folder: what drawing needs of its manifest and its conformance.json, checked once. */
class Bundle private constructor(val folder: File, val target: String, val manifest: Json, val cases: Json) {
    private val about = manifest["targets"].find(target) ?: refuse(Reason.BUNDLE, "The bundle has no files for $target.")
    val name: String = manifest["name"].text
    val precision: String = about["precision"].text
    val components: Map<String, Component> = about["components"].fields.mapValues { (role, one) -> componentOf(role, one) }
    val student: Component = withOutput("velocity")
    val decoder: Component = withOutput("picture")
    val rules: List<Json> = cases["tokenizers"].items
    val guidance: Guidance? = manifest.find("guidance")?.let {
        Guidance(it["scale"].number.toFloat(), it["negative_prompt"].text)
    }

    /** Channels, height and width of the latent. */
    val latent: IntArray = student.inputs.first { it.name == "latent" }.shape.let { it.copyOfRange(1, it.size) }
    val height: Int = manifest["resolution"].items[0].int
    val width: Int = manifest["resolution"].items[1].int
    val steps: Int = manifest["schedule"]["sigmas"].items.size - 1

    /** What the noise is multiplied with at first. */
    val start: Float = manifest["schedule"].find("start")?.number?.toFloat() ?: 1f

    /** Text streams of the student that stay empty. */
    val absent: Set<String> = manifest["config"].find("absent_streams")?.texts.orEmpty().toSet()

    init {
        val rows = if (guidance == null) 1 else 2
        if (student.inputs.any { it.shape[0] != rows }) {
            refuse(Reason.BUNDLE, "The bundle's student takes another number of rows than $rows, which this app gives it.")
        }
        val sampler = samplerOf(manifest)
        if (sampler !in SAMPLERS) refuse(Reason.BUNDLE, "This app cannot draw with the sampler $sampler.")
        val generator = manifest["noise"]["generator"].text
        if (generator != GENERATOR) {
            refuse(Reason.BUNDLE, "The bundle begins pictures with noise of $generator: export it with --noise $GENERATOR.")
        }
        val read = rules.map { it["stream"].text }.toSet() + absent
        val left = student.inputs.map { it.name }.filter { it.endsWith("_mask") }.map { it.removeSuffix("_mask") } - read
        if (left.isNotEmpty()) refuse(Reason.BUNDLE, "No text encoder of the bundle makes the text stream ${left[0]}.")
    }

    /** Every file that drawing needs, besides manifest.json and conformance.json. */
    val files: Map<String, FileEntry>
        get() = components.values.flatMap { it.files.entries }.associate { it.key to it.value } +
            rules.map { it["file"].text }.associateWith { entryOf(manifest["files"][it]) }

    /** Every file that an app has, besides manifest.json and conformance.json: [files], and the test vectors. */
    val shipped: Map<String, FileEntry>
        get() = files + cases["vectors"].text.let { it to entryOf(manifest["files"][it]) }

    /**
     * Hold every file that drawing needs against its hash; `counted` gets the bytes that were read, again and again.
     *
     * Throws [Refused] for the first file that is not the exported one.
     */
    fun check(counted: (Int) -> Unit = {}) {
        for ((file, entry) in files) checkFile(File(folder, file), file, entry, counted)
    }

    /** The test vectors, held against their hash. */
    fun vectors(): Map<String, Tensor> {
        val file = cases["vectors"].text
        checkFile(File(folder, file), file, entryOf(manifest["files"][file]))
        return readSafetensors(File(folder, file))
    }

    private fun withOutput(name: String): Component =
        components.values.firstOrNull { one -> one.outputs.any { it.name == name } }
            ?: refuse(Reason.BUNDLE, "The bundle has no component that gives a $name; it cannot draw.")

    companion object {
        /**
         * Read a bundle.
         *
         * @param sha256 of its manifest.json, which an app knows from its build; null: not checked.
         */
        fun open(folder: File, target: String, sha256: String?): Bundle {
            val manifest = readChecked(folder, MANIFEST, sha256)
            if (manifest["schema_version"].int != 1) refuse(Reason.BUNDLE, "This app cannot read the bundle: it has another version.")
            val cases = readChecked(folder, CONFORMANCE, manifest["files"][CONFORMANCE]["sha256"].text)
            if (cases["format"].int != 1) refuse(Reason.BUNDLE, "This app cannot read $CONFORMANCE: it has another version.")
            return Bundle(folder, target, manifest, cases)
        }

        private fun readChecked(folder: File, name: String, sha256: String?): Json {
            val bytes = readable(File(folder, name)) { it.readBytes() }
            if (sha256 != null) checkHash(name, hex(MessageDigest.getInstance("SHA-256").digest(bytes)), sha256)
            return Json.parse(String(bytes, Charsets.UTF_8), name)
        }
    }
}

private fun componentOf(role: String, about: Json) = Component(
    role,
    about["path"].text,
    about.find("entry")?.text,
    about["inputs"].items.map { portOf(role, it) },
    about["outputs"].items.map { portOf(role, it) },
    about["files"].fields.mapValues { (_, entry) -> entryOf(entry) },
)

private fun portOf(role: String, about: Json): Port {
    val kind = about["dtype"].text
    if (kind !in setOf("float32", "int32")) refuse(Reason.BUNDLE, "$role takes or gives $kind, which this app does not make.")
    return Port(about["name"].text, about["shape"].ints)
}

/** Bytes and hash as a manifest has them. */
fun entryOf(about: Json): FileEntry = FileEntry(about["bytes"].whole, about["sha256"].text)

internal inline fun <T> readable(file: File, read: (File) -> T): T =
    try {
        read(file)
    } catch (error: java.io.IOException) {
        throw Refused(Reason.BUNDLE, "${file.name} cannot be read; install the app again.", error)
    }

private fun checkFile(file: File, name: String, entry: FileEntry, counted: (Int) -> Unit = {}) {
    checkHash(name, readable(file) { it.inputStream().use { stream -> sha256(stream, counted) } }, entry.sha256)
}

/** SHA-256 of what a stream gives, in hexadecimal; `each` is called with the bytes of every part, once it was read. */
fun sha256(stream: InputStream, counted: (Int) -> Unit = {}, each: (ByteArray, Int) -> Unit = { _, _ -> }): String {
    val digest = MessageDigest.getInstance("SHA-256")
    val part = ByteArray(1 shl 20)
    while (true) {
        val count = stream.read(part)
        if (count < 0) return hex(digest.digest())
        digest.update(part, 0, count)
        each(part, count)
        counted(count)
    }
}

private fun hex(bytes: ByteArray): String = bytes.joinToString("") { (it.toInt() and 0xFF).toString(16).padStart(2, '0') }

/** Refuse a file that has another hash than the exported one. */
fun checkHash(name: String, found: String, expected: String) {
    if (found != expected) {
        refuse(
            Reason.HASH,
            "$name is not the exported file: its SHA-256 is ${found.take(12)}…, expected ${expected.take(12)}…. " +
                "Install the app again.",
        )
    }
}
