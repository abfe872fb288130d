package snapgen.core

import java.io.File

/** What a text encoder reads: `length` tokens, and a mask that is 1 where it shall look. */
class Prompt(val tokens: IntArray, val mask: FloatArray)

/** Prompt -> tokens and mask, by the rule of a text encoder in conformance.json. */
class PromptReader(val rule: Json, private val tokenizer: Tokenizer) {
    val encoder: String = rule["encoder"].text
    val stream: String = rule["stream"].text
    val length: Int = rule["length"].int

    /** The first tokens that the student does not see. */
    val dropped: Int = rule["dropped"].int
    private val template = rule["template"].text
    private val special = rule["special_tokens"].truth
    private val unknown = if (rule["unknown"].text == "refused") rule.find("unknown_token")?.int else null
    private val pad = rule["pad"].int
    private val left = rule["side"].text == "left"
    private val unseen = if (rule["padding_seen"].truth) 1f else 0f

    /** Tokens and mask of a prompt; [Refused] for the prompts that `generate` refuses. */
    fun read(prompt: String): Prompt {
        val place = template.indexOf("{}")
        val text = if (place < 0) template else template.substring(0, place) + prompt + template.substring(place + 2)
        if (unknown != null) {
            val words = tokenizer.encode(text, false).filter { it.id == unknown }.map { it.piece }.distinct()
            if (words.isNotEmpty()) {
                refuse(Reason.UNKNOWN, "The model does not know ${words.joinToString { "“$it”" }}. Use other words.")
            }
        }
        val ids = tokenizer.encode(text, special).map { it.id }
        if (ids.size > length) {
            refuse(Reason.LONG, "The prompt has ${ids.size} tokens, at most $length fit. Shorten it.")
        }
        val begin = if (left) length - ids.size else 0
        val within = begin until begin + ids.size
        return Prompt(
            IntArray(length) { if (it in within) ids[it - begin] else pad },
            FloatArray(length) { if (it in within) 1f else unseen },
        )
    }
}

/** The readers of a bundle's text encoders. */
fun readersOf(bundle: Bundle): List<PromptReader> = bundle.rules.map { rule ->
    val file = rule["file"].text
    PromptReader(rule, Tokenizer(Json.parse(readable(File(bundle.folder, file)) { it.readText() }, file)))
}
