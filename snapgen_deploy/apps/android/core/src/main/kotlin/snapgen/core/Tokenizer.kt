package snapgen.core

import java.text.Normalizer

/** A token, and the piece of the text that it comes from. */
class Token(val id: Int, val piece: String)

/**
 * A tokenizer.json of Hugging Face's `tokenizers`: whole words, or byte pairs as those of CLIP, GPT-2, Qwen and Gemma.
 *
 * Kinds of parts that this release does not read are refused when it is made, in one message.
 */
class Tokenizer(file: Json) {
    private val added = addedTokens(file)
    private val normalise: (String) -> String = file.find("normalizer")?.let(::normaliserOf) ?: { it }
    private val pieces: (String) -> List<String> = file.find("pre_tokenizer")?.let(::preTokenizerOf) ?: { listOf(it) }
    private val model: (String) -> List<Int> = modelOf(file["model"])
    private val frame: (List<Token>) -> List<Token> = file.find("post_processor")?.let(::frameOf) ?: { it }

    // A token that is matched after the text was normalised is normalised, too.
    private val early = matcher(added.filter { !it.normalised }.associate { it.content to it.id })
    private val late = matcher(added.filter { it.normalised }.associate { normalise(it.content) to it.id })

    /** The tokens of a text. It is neither padded nor cut. */
    fun encode(text: String, specialTokens: Boolean): List<Token> {
        val tokens = early(text).flatMap { (part, id) ->
            if (id != null) listOf(Token(id, part)) else late(normalise(part)).flatMap(::ofPart)
        }
        return if (specialTokens) frame(tokens) else tokens
    }

    private fun ofPart(part: Pair<String, Int?>): List<Token> {
        val (text, id) = part
        if (id != null) return listOf(Token(id, text))
        return pieces(text).filter { it.isNotEmpty() }.flatMap { piece -> model(piece).map { Token(it, piece) } }
    }
}

private fun unread(kind: String): Nothing = refuse(
    Reason.TOKENIZER,
    "The bundle's tokenizer has $kind, which this app does not read: it reads whole words and byte pairs (CLIP, GPT-2, Qwen, Gemma).",
)

private fun kindOf(part: Json): String = part["type"].text

// ----------------------------------------------------------------------------------------------------------- added tokens

private class Added(val content: String, val id: Int, val normalised: Boolean)

private fun addedTokens(file: Json): List<Added> = file.find("added_tokens")?.items.orEmpty().map {
    for (option in listOf("single_word", "lstrip", "rstrip")) {
        if (it.find(option)?.truth == true) unread("an added token with $option")
    }
    Added(it["content"].text, it["id"].int, it.find("normalized")?.truth ?: false)
}

/** Cuts a text at the longest of these words: parts with their id, or null between them. */
private fun matcher(ids: Map<String, Int>): (String) -> List<Pair<String, Int?>> {
    val words = ids.keys.filter { it.isNotEmpty() }.sortedByDescending { it.length }
    if (words.isEmpty()) return { listOf(it to null) }
    return { text ->
        val found = ArrayList<Pair<String, Int?>>()
        var begin = 0
        var at = 0
        while (at < text.length) {
            val word = words.firstOrNull { text.startsWith(it, at) }
            if (word == null) {
                at++
                continue
            }
            if (at > begin) found.add(text.substring(begin, at) to null)
            found.add(word to ids.getValue(word))
            at += word.length
            begin = at
        }
        if (begin < text.length) found.add(text.substring(begin) to null)
        found
    }
}

// ------------------------------------------------------------------------------------------------------------- normalisers

private val FORMS = mapOf(
    "NFC" to Normalizer.Form.NFC, "NFD" to Normalizer.Form.NFD, "NFKC" to Normalizer.Form.NFKC, "NFKD" to Normalizer.Form.NFKD,
)

private fun normaliserOf(part: Json): (String) -> String = when (val kind = kindOf(part)) {
    "Sequence" -> part["normalizers"].items.map(::normaliserOf).let { all -> { text -> all.fold(text) { now, one -> one(now) } } }
    "Lowercase" -> ::lowered
    "NFC", "NFD", "NFKC", "NFKD" -> FORMS.getValue(kind).let { form -> { text -> Normalizer.normalize(text, form) } }
    "Prepend" -> part["prepend"].text.let { head -> { text -> if (text.isEmpty()) text else head + text } }
    "Replace" -> {
        val pattern = patternOf(part["pattern"])
        val content = Regex.escapeReplacement(part["content"].text);
        { text -> pattern.replace(text, content) }
    }
    "Strip" -> {
        val left = part["strip_left"].truth
        val right = part["strip_right"].truth;
        { text -> stripped(text, left, right) }
    }
    else -> unread("a normalizer of kind $kind")
}

/** Every character by itself, so that a sigma at a word's end is no special case. */
private fun lowered(text: String): String {
    val out = StringBuilder(text.length)
    text.codePoints().forEach { out.append(String(Character.toChars(it)).lowercase(java.util.Locale.ROOT)) }
    return out.toString()
}

private fun stripped(text: String, left: Boolean, right: Boolean): String {
    val points = text.codePoints().toArray()
    var from = 0
    var to = points.size
    while (left && from < to && isSpace(points[from])) from++
    while (right && to > from && isSpace(points[to - 1])) to--
    return String(points, from, to - from)
}

// ---------------------------------------------------------------------------------------------------------- pre-tokenizers

private const val GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

private fun preTokenizerOf(part: Json): (String) -> List<String> = when (val kind = kindOf(part)) {
    "Sequence" -> part["pretokenizers"].items.map(::preTokenizerOf).let { all ->
        { text -> all.fold(listOf(text)) { now, one -> now.flatMap(one) } }
    }
    "Whitespace" -> { text -> runs(text) { if (isSpace(it)) 0 else if (isWord(it)) 1 else 2 } }
    "WhitespaceSplit" -> { text -> runs(text) { if (isSpace(it)) 0 else 1 } }
    "Split" -> splitOf(patternOf(part["pattern"]), part["behavior"].text, part.find("invert")?.truth == true)
    "ByteLevel" -> byteLevelOf(part)
    else -> unread("a pre-tokenizer of kind $kind")
}

/** Runs of code points of one class; those of class 0 are left out. */
private fun runs(text: String, classOf: (Int) -> Int): List<String> {
    val found = ArrayList<String>()
    var begin = 0
    var at = 0
    var last = 0
    while (at < text.length) {
        val point = text.codePointAt(at)
        val now = classOf(point)
        if (now != last) {
            if (last != 0) found.add(text.substring(begin, at))
            begin = at
            last = now
        }
        at += Character.charCount(point)
    }
    if (last != 0) found.add(text.substring(begin))
    return found
}

private fun isSpace(point: Int): Boolean = point in 9..13 || point == 0x85 || when (Character.getType(point).toByte()) {
    Character.SPACE_SEPARATOR, Character.LINE_SEPARATOR, Character.PARAGRAPH_SEPARATOR -> true
    else -> false
}

private fun isWord(point: Int): Boolean = Character.isAlphabetic(point) || point == 0x200C || point == 0x200D ||
    when (Character.getType(point).toByte()) {
        Character.NON_SPACING_MARK, Character.ENCLOSING_MARK, Character.COMBINING_SPACING_MARK,
        Character.DECIMAL_DIGIT_NUMBER, Character.CONNECTOR_PUNCTUATION,
        -> true
        else -> false
    }

private fun splitOf(pattern: Regex, behavior: String, invert: Boolean): (String) -> List<String> {
    if (behavior !in setOf("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext")) unread("a split of kind $behavior")
    return { text ->
        val parts = parts(text, pattern).map { (part, match) -> part to (match != invert) }
        when (behavior) {
            "Removed" -> parts.filter { !it.second }.map { it.first }
            "Isolated" -> parts.map { it.first }
            "MergedWithPrevious" -> merged(parts) { before, now -> before + now }
            else -> merged(parts.asReversed()) { before, now -> now + before }.asReversed()
        }
    }
}

/** Matches of a pattern, and what lies between them; without empty ones. */
private fun parts(text: String, pattern: Regex): List<Pair<String, Boolean>> {
    val found = ArrayList<Pair<String, Boolean>>()
    var at = 0
    for (match in pattern.findAll(text)) {
        if (match.value.isEmpty()) continue
        if (match.range.first > at) found.add(text.substring(at, match.range.first) to false)
        found.add(match.value to true)
        at = match.range.last + 1
    }
    if (at < text.length) found.add(text.substring(at) to false)
    return found
}

/** Each match joins the part before it, if that is none itself. */
private fun merged(parts: List<Pair<String, Boolean>>, join: (String, String) -> String): List<String> {
    val found = ArrayList<String>()
    var matched = false
    for ((part, match) in parts) {
        if (match && !matched && found.isNotEmpty()) found[found.size - 1] = join(found.last(), part) else found.add(part)
        matched = match
    }
    return found
}

private fun byteLevelOf(part: Json): (String) -> List<String> {
    val prefix = part.find("add_prefix_space")?.truth ?: true
    val pattern = if (part.find("use_regex")?.truth ?: true) portable(GPT2) else null
    return { text ->
        val whole = if (prefix && !text.startsWith(" ")) " $text" else text
        val cut = if (pattern == null) listOf(whole) else parts(whole, pattern).map { it.first }
        cut.map { one -> one.toByteArray(Charsets.UTF_8).joinToString("") { LETTERS[it.toInt() and 0xFF] } }
    }
}

/** A visible letter for every byte, as GPT-2 has them. */
private val LETTERS: List<String> = run {
    val visible = ('!'.code..'~'.code) + ('¡'.code..'¬'.code) + ('®'.code..'ÿ'.code)
    val others = (0..255) - visible.toSet()
    List(256) { byte -> (if (byte in visible) byte else 256 + others.indexOf(byte)).toChar().toString() }
}

// ---------------------------------------------------------------------------------------------------------------- patterns

private fun patternOf(part: Json): Regex =
    part.find("String")?.let { Regex(Regex.escape(it.text)) } ?: portable(part["Regex"].text)

private const val SPACE = "\\t-\\r\\u0085\\p{Z}" // White_Space of Unicode

/** A pattern of Rust's or Oniguruma's with classes that mean the same on every JVM and on Android. */
private fun portable(pattern: String): Regex {
    val out = StringBuilder()
    var depth = 0
    var at = 0
    while (at < pattern.length) {
        val c = pattern[at]
        val escaped = if (c == '\\' && at + 1 < pattern.length) pattern[at + 1] else null
        when {
            escaped == 's' -> out.append(if (depth > 0) SPACE else "[$SPACE]")
            escaped == 'S' && depth == 0 -> out.append("[^$SPACE]")
            escaped == 'd' -> out.append("\\p{Nd}")
            escaped != null && escaped in "SDwWbBh" -> unread("a pattern with \\$escaped")
            escaped != null -> out.append(c).append(escaped)
            else -> {
                if (c == '[') depth++
                if (c == ']' && depth > 0) depth--
                out.append(c)
            }
        }
        at += if (escaped == null) 1 else 2
    }
    return try {
        Regex(out.toString())
    } catch (error: java.util.regex.PatternSyntaxException) {
        unread("the pattern $pattern")
    }
}

// ------------------------------------------------------------------------------------------------------------------ models

private fun modelOf(part: Json): (String) -> List<Int> = when (val kind = part.find("type")?.text ?: "BPE") {
    "WordLevel" -> {
        val ids = idsOf(part["vocab"])
        val unknown = ids[part["unk_token"].text];
        { word -> listOfNotNull(ids[word] ?: unknown) }
    }
    "BPE" -> BytePairs(part)::read
    else -> unread("a model of kind $kind")
}

private fun idsOf(vocabulary: Json): Map<String, Int> = vocabulary.fields.mapValues { (_, id) -> id.int }

private class BytePairs(part: Json) {
    private val ids = idsOf(part["vocab"])
    private val unknown = part.find("unk_token")?.let { ids[it.text] }
    private val fuses = part.find("fuse_unk")?.truth == true
    private val prefix = part.find("continuing_subword_prefix")?.text.orEmpty()
    private val suffix = part.find("end_of_word_suffix")?.text.orEmpty()
    private val bytes = if (part.find("byte_fallback")?.truth == true) {
        List(256) { ids["<0x${it.toString(16).uppercase().padStart(2, '0')}>"] }
    } else {
        null
    }
    private val wholeFirst = part.find("ignore_merges")?.truth == true
    private val ranks = HashMap<Long, Int>()
    private val made: IntArray

    init {
        if ((part.find("dropout")?.number ?: 0.0) != 0.0) unread("byte pairs with dropout")
        val merges = part["merges"].items
        made = IntArray(merges.size)
        merges.forEachIndexed { rank, merge ->
            val (left, right) = if (merge.isText) merge.text.split(" ", limit = 2) else merge.texts
            ranks[pair(idOf(left), idOf(right))] = rank
            made[rank] = idOf(left + right.substring(prefix.length))
        }
    }

    private fun idOf(symbol: String): Int = ids[symbol] ?: unread("a merge of '$symbol', which is no token")

    private fun pair(left: Int, right: Int): Long = (left.toLong() shl 32) or (right.toLong() and 0xFFFFFFFFL)

    fun read(word: String): List<Int> {
        if (wholeFirst) ids[word]?.let { return listOf(it) }
        val symbols = symbols(word)
        while (symbols.size > 1) {
            var best = -1
            var least = Int.MAX_VALUE
            for (i in 0 until symbols.size - 1) {
                val rank = ranks[pair(symbols[i], symbols[i + 1])] ?: continue
                if (rank < least) {
                    least = rank
                    best = i
                }
            }
            if (best < 0) break
            symbols[best] = made[least]
            symbols.removeAt(best + 1)
        }
        return symbols
    }

    private fun symbols(word: String): MutableList<Int> {
        val found = ArrayList<Int>()
        var missing = false // the last character was unknown
        val points = word.codePoints().toArray()
        points.forEachIndexed { i, point ->
            val symbol = (if (i > 0) prefix else "") + String(Character.toChars(point)) + (if (i == points.size - 1) suffix else "")
            val id = ids[symbol]
            val fallback = if (id == null) inBytes(symbol) else null
            when {
                id != null -> found.add(id)
                fallback != null -> found.addAll(fallback)
                unknown != null && !(missing && fuses) -> found.add(unknown)
            }
            missing = id == null && fallback == null
        }
        return found
    }

    private fun inBytes(symbol: String): List<Int>? =
        bytes?.let { all -> symbol.toByteArray(Charsets.UTF_8).map { all[it.toInt() and 0xFF] ?: return null } }
}

// --------------------------------------------------------------------------------------------------------- post-processors

private fun frameOf(part: Json): (List<Token>) -> List<Token> = when (val kind = kindOf(part)) {
    "ByteLevel" -> { tokens -> tokens }
    "Sequence" -> part["processors"].items.map(::frameOf).let { all -> { tokens -> all.fold(tokens) { now, one -> one(now) } } }
    "RobertaProcessing", "BertProcessing" -> {
        val (begin, end) = listOf("cls", "sep").map { Token(part[it].items[1].int, "") };
        { tokens -> listOf(begin) + tokens + end }
    }
    "TemplateProcessing" -> {
        val special = part["special_tokens"].fields.mapValues { (_, one) -> one["ids"].ints.map { Token(it, "") } }
        val places = part["single"].items.map { place -> place.find("SpecialToken")?.let { special.getValue(it["id"].text) } };
        { tokens -> places.flatMap { it ?: tokens } }
    }
    else -> unread("a post-processor of kind $kind")
}
