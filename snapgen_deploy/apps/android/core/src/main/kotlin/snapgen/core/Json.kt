package snapgen.core

private const val DEEPEST = 200

/** A value of a JSON document that knows its place in it, for messages. Wrong kinds are refused by name. */
class Json private constructor(private val value: Any?, private val place: String) {
    /** The field `key` of an object. */
    operator fun get(key: String): Json = find(key) ?: refuse(Reason.BUNDLE, "$place has no $key; export the bundle again.")

    /** The field `key` of an object, or null where it is missing or null. */
    fun find(key: String): Json? = (objectOf()[key])?.let { Json(it, "$place.$key") }

    /** The fields of an object, in the order of the file. */
    val fields: Map<String, Json> get() = objectOf().mapValues { (key, one) -> Json(one, "$place.$key") }

    /** The elements of an array. */
    val items: List<Json>
        get() = (value as? List<*> ?: wrong("an array")).mapIndexed { i, one -> Json(one, "$place[$i]") }

    val text: String get() = value as? String ?: wrong("a text")
    val number: Double get() = value as? Double ?: wrong("a number")
    val truth: Boolean get() = value as? Boolean ?: wrong("true or false")

    /** A whole number of 64 bits; those beyond 2^53 are texts in a bundle. */
    val whole: Long
        get() = number.let { if (it == Math.rint(it) && Math.abs(it) < 9.1e15) it.toLong() else wrong("a whole number") }
    val int: Int get() = whole.let { if (it in Int.MIN_VALUE..Int.MAX_VALUE) it.toInt() else wrong("a small whole number") }

    val numbers: DoubleArray get() = items.let { list -> DoubleArray(list.size) { list[it].number } }
    val floats: FloatArray get() = items.let { list -> FloatArray(list.size) { list[it].number.toFloat() } }
    val ints: IntArray get() = items.let { list -> IntArray(list.size) { list[it].int } }
    val texts: List<String> get() = items.map { it.text }

    /** Whether it is a text, and not another kind of value. */
    val isText: Boolean get() = value is String

    @Suppress("UNCHECKED_CAST")
    private fun objectOf(): Map<String, Any?> = value as? Map<String, Any?> ?: wrong("an object")

    private fun wrong(expected: String): Nothing = refuse(Reason.BUNDLE, "$place is not $expected; export the bundle again.")

    companion object {
        /** Parse a document; `name` stands for it in messages. */
        fun parse(text: String, name: String): Json = Json(Parser(text, name).document(), name)
    }
}

/** A value (maps, lists, texts, numbers, booleans, null) as JSON in one line. */
fun jsonText(value: Any?): String = StringBuilder().also { write(value, it) }.toString()

private fun write(value: Any?, out: StringBuilder) {
    when (value) {
        null, is Boolean, is Int, is Long -> out.append(value)
        is Double -> out.append(if (value.isFinite()) value.toString() else "null")
        is Float -> write(value.toDouble(), out)
        is String -> quote(value, out)
        is Map<*, *> -> listed(value.entries, '{', '}', out) { (key, one) ->
            quote(key.toString(), out)
            out.append(": ")
            write(one, out)
        }
        is Iterable<*> -> listed(value, '[', ']', out) { write(it, out) }
        else -> throw IllegalArgumentException("no JSON for ${value::class}")
    }
}

private fun <T> listed(values: Iterable<T>, open: Char, close: Char, out: StringBuilder, each: (T) -> Unit) {
    out.append(open)
    values.forEachIndexed { i, one ->
        if (i > 0) out.append(", ")
        each(one)
    }
    out.append(close)
}

private fun quote(text: String, out: StringBuilder) {
    out.append('"')
    for (c in text) {
        when {
            c == '"' || c == '\\' -> out.append('\\').append(c)
            c == '\n' -> out.append("\\n")
            c < ' ' -> out.append("\\u").append(c.code.toString(16).padStart(4, '0'))
            else -> out.append(c)
        }
    }
    out.append('"')
}

private class Parser(private val text: String, private val name: String) {
    private var at = 0

    fun document(): Any? {
        val value = value(0)
        space()
        if (at != text.length) fail("ends before its end")
        return value
    }

    private fun value(depth: Int): Any? {
        if (depth > DEEPEST) fail("is nested too deeply")
        space()
        return when (peek()) {
            '{' -> fields(depth)
            '[' -> items(depth)
            '"' -> string()
            't' -> word("true", true)
            'f' -> word("false", false)
            'n' -> word("null", null)
            else -> number()
        }
    }

    private fun fields(depth: Int): Map<String, Any?> {
        val found = LinkedHashMap<String, Any?>()
        at++
        if (closes('}')) return found
        do {
            space()
            if (peek() != '"') fail("has a field without a name")
            val key = string()
            space()
            if (peek() != ':') fail("has a field without a value")
            at++
            found[key] = value(depth + 1)
        } while (continues('}'))
        return found
    }

    private fun items(depth: Int): List<Any?> {
        val found = ArrayList<Any?>()
        at++
        if (closes(']')) return found
        do found.add(value(depth + 1)) while (continues(']'))
        return found
    }

    private fun closes(end: Char): Boolean {
        space()
        if (peek() != end) return false
        at++
        return true
    }

    private fun continues(end: Char): Boolean {
        space()
        val c = peek()
        at++
        if (c != ',' && c != end) fail("lacks a comma")
        return c == ','
    }

    private fun string(): String {
        at++
        val out = StringBuilder()
        while (true) {
            val c = peek()
            at++
            when {
                c == '"' -> return out.toString()
                c == '\\' -> escape(out)
                c < ' ' -> fail("has a control character in a text")
                else -> out.append(c)
            }
        }
    }

    private fun escape(out: StringBuilder) {
        val c = peek()
        at++
        when (c) {
            '"', '\\', '/' -> out.append(c)
            'b' -> out.append('\b')
            'f' -> out.append('\u000c')
            'n' -> out.append('\n')
            'r' -> out.append('\r')
            't' -> out.append('\t')
            'u' -> {
                val code = if (at + 4 <= text.length) text.substring(at, at + 4).toIntOrNull(16) else null
                out.append((code ?: fail("has a wrong escape")).toChar())
                at += 4
            }
            else -> fail("has a wrong escape")
        }
    }

    private fun number(): Double {
        val begin = at
        while (at < text.length && (text[at].isDigit() || text[at] in "+-.eE")) at++
        return text.substring(begin, at).toDoubleOrNull() ?: fail("has no value where one is expected")
    }

    private fun word(word: String, value: Boolean?): Boolean? {
        if (!text.startsWith(word, at)) fail("has no value where one is expected")
        at += word.length
        return value
    }

    private fun space() {
        while (at < text.length && text[at] in " \t\r\n") at++
    }

    private fun peek(): Char = if (at < text.length) text[at] else fail("ends too early")

    private fun fail(what: String): Nothing = refuse(Reason.BUNDLE, "$name is no JSON: it $what at character $at.")
}
