package snapgen.core

/** Why something was refused. In lower case it is what conformance.json and a record call it. */
enum class Reason {
    /** The prompt has words that the model does not know. */
    UNKNOWN,

    /** The prompt has more tokens than the model reads. */
    LONG,

    /** The prompt is empty. */
    EMPTY,

    /** The user took it back. */
    CANCELLED,

    /** The bundle lacks something, or has a format that this release does not read. */
    BUNDLE,

    /** A file is not the exported one. */
    HASH,

    /** The tokenizer is of a kind that this release does not read. */
    TOKENIZER,

    /** The runtime cannot load or run a component on this device. */
    RUNTIME,

    /** The model returned values that are not finite. */
    FINITE,
    ;

    /** Its name in files. */
    val word: String get() = name.lowercase()
}

/** An error that an app shows as it is: what is wrong, and what to do. */
class Refused(val reason: Reason, message: String, cause: Throwable? = null) : Exception(message, cause)

internal fun refuse(reason: Reason, message: String): Nothing = throw Refused(reason, message)
