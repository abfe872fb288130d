import Foundation

/// A token, and the piece of the text that it comes from.
struct Token {
    let id: Int
    let piece: String
}

private typealias Normalising = @Sendable (String) -> String
private typealias Cutting = @Sendable (String) -> [String]
private typealias Reading = @Sendable (String) -> [Int]
private typealias Framing = @Sendable ([Token]) -> [Token]

/// Texts are told apart by their bytes: Swift's own equality takes composed and decomposed letters for the same.
private typealias Symbol = [UInt8]

/// A tokenizer.json of Hugging Face's `tokenizers`: whole words, or byte pairs as those of CLIP, GPT-2, Qwen and Gemma.
///
/// Kinds of parts that this release does not read are refused when it is made, in one message.
public struct Tokenizer: Sendable {
    private let normalise: Normalising
    private let pieces: Cutting
    private let model: Reading
    private let frame: Framing
    private let early: Matcher
    private let late: Matcher

    public init(_ file: JSON) throws {
        let added = try file.find("added_tokens")?.items.map(Added.init) ?? []
        let normalise = try file.find("normalizer").map(normaliser) ?? { $0 }
        self.normalise = normalise
        pieces = try file.find("pre_tokenizer").map(preTokenizer) ?? { [$0] }
        model = try modelReader(file["model"])
        frame = try file.find("post_processor").map(postProcessor) ?? { $0 }
        // A token that is matched after the text was normalised is normalised, too.
        early = Matcher(added.filter { !$0.normalised }.map { ($0.content, $0.id) })
        late = Matcher(added.filter(\.normalised).map { (normalise($0.content), $0.id) })
    }

    /// The ids of a text. They are neither padded nor cut.
    public func ids(_ text: String, specialTokens: Bool) -> [Int] { encode(text, specialTokens: specialTokens).map(\.id) }

    func encode(_ text: String, specialTokens: Bool) -> [Token] {
        let found = early.parts(text).flatMap { part, id -> [Token] in
            if let id { return [Token(id: id, piece: part)] }
            return late.parts(normalise(part)).flatMap { tokens(of: $0.0, $0.1) }
        }
        return specialTokens ? frame(found) : found
    }

    private func tokens(of part: String, _ id: Int?) -> [Token] {
        if let id { return [Token(id: id, piece: part)] }
        return pieces(part).filter { !$0.isEmpty }.flatMap { piece in model(piece).map { Token(id: $0, piece: piece) } }
    }
}

private func unread(_ kind: String) -> Refused {
    Refused(
        .tokenizer,
        "The bundle's tokenizer has \(kind), which this app does not read: it reads whole words and byte pairs"
            + " (CLIP, GPT-2, Qwen, Gemma).",
        remedy: "Use a text encoder with such a tokenizer, or a tokenizer library of your own."
    )
}

// MARK: - Added tokens

private struct Added {
    let content: String
    let id: Int
    let normalised: Bool

    init(_ about: JSON) throws {
        for option in ["single_word", "lstrip", "rstrip"] where try about.find(option)?.truth == true {
            throw unread("an added token with \(option)")
        }
        content = try about["content"].text
        id = try about["id"].whole
        normalised = try about.find("normalized")?.truth ?? false
    }
}

/// Cuts a text at the longest of some words.
private struct Matcher: Sendable {
    private let words: [(bytes: Symbol, id: Int)]

    init(_ words: [(String, Int)]) {
        let known = words.map { (bytes: Symbol($0.0.utf8), id: $0.1) }.filter { !$0.bytes.isEmpty }
        self.words = known.sorted { $0.bytes.count > $1.bytes.count }
    }

    /// Parts with their id, or nil between them.
    func parts(_ text: String) -> [(String, Int?)] {
        if words.isEmpty { return [(text, nil)] }
        let bytes = Symbol(text.utf8)
        var found: [(String, Int?)] = []
        var begin = 0
        var at = 0
        while at < bytes.count {
            guard let word = words.first(where: { bytes[at...].starts(with: $0.bytes) }) else {
                at += 1
                continue
            }
            if at > begin { found.append((String(decoding: bytes[begin..<at], as: UTF8.self), nil)) }
            found.append((String(decoding: word.bytes, as: UTF8.self), word.id))
            at += word.bytes.count
            begin = at
        }
        if begin < bytes.count { found.append((String(decoding: bytes[begin...], as: UTF8.self), nil)) }
        return found
    }
}

// MARK: - Normalisers

private func normaliser(_ part: JSON) throws -> Normalising {
    let kind = try part["type"].text
    switch kind {
    case "Sequence":
        let all = try part["normalizers"].items.map(normaliser)
        return { text in all.reduce(text) { $1($0) } }
    case "Lowercase":
        // every character by itself, so that a sigma at a word's end is no special case
        return { text in text.unicodeScalars.map { $0.properties.lowercaseMapping }.joined() }
    case "NFC": return { $0.precomposedStringWithCanonicalMapping }
    case "NFD": return { $0.decomposedStringWithCanonicalMapping }
    case "NFKC": return { $0.precomposedStringWithCompatibilityMapping }
    case "NFKD": return { $0.decomposedStringWithCompatibilityMapping }
    case "Prepend":
        let head = try part["prepend"].text
        return { $0.isEmpty ? $0 : head + $0 }
    case "Replace":
        let found = try expression(part["pattern"])
        let content = NSRegularExpression.escapedTemplate(for: try part["content"].text)
        return { text in
            let whole = NSRange(location: 0, length: text.utf16.count)
            return found.stringByReplacingMatches(in: text, range: whole, withTemplate: content)
        }
    case "Strip":
        let (left, right) = (try part["strip_left"].truth, try part["strip_right"].truth)
        return { text in
            var scalars = Array(text.unicodeScalars)
            if left { scalars = Array(scalars.drop { $0.properties.isWhitespace }) }
            while right, let last = scalars.last, last.properties.isWhitespace { scalars.removeLast() }
            return string(scalars)
        }
    default: throw unread("a normalizer of kind \(kind)")
    }
}

private func string<Scalars: Sequence>(_ scalars: Scalars) -> String where Scalars.Element == Unicode.Scalar {
    var out = String.UnicodeScalarView()
    out.append(contentsOf: scalars)
    return String(out)
}

// MARK: - Pre-tokenizers

private let gpt2 = #"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"#

private func preTokenizer(_ part: JSON) throws -> Cutting {
    let kind = try part["type"].text
    switch kind {
    case "Sequence":
        let all = try part["pretokenizers"].items.map(preTokenizer)
        return { text in all.reduce([text]) { now, one in now.flatMap(one) } }
    case "Whitespace": return { text in runs(text) { $0.properties.isWhitespace ? 0 : isWord($0) ? 1 : 2 } }
    case "WhitespaceSplit": return { text in runs(text) { $0.properties.isWhitespace ? 0 : 1 } }
    case "Split":
        return try split(expression(part["pattern"]), part["behavior"].text, inverted: part.find("invert")?.truth == true)
    case "ByteLevel": return try byteLevel(part)
    default: throw unread("a pre-tokenizer of kind \(kind)")
    }
}

/// Runs of code points of one class; those of class 0 are left out.
private func runs(_ text: String, _ kind: (Unicode.Scalar) -> Int) -> [String] {
    var found: [String] = []
    var run: [Unicode.Scalar] = []
    var last = 0
    for scalar in text.unicodeScalars {
        let now = kind(scalar)
        if now != last {
            if last != 0 { found.append(string(run)) }
            run = []
            last = now
        }
        run.append(scalar)
    }
    if last != 0 { found.append(string(run)) }
    return found
}

private func isWord(_ scalar: Unicode.Scalar) -> Bool {
    switch scalar.properties.generalCategory {
    case .nonspacingMark, .enclosingMark, .spacingMark, .decimalNumber, .connectorPunctuation: return true
    default: return scalar.properties.isAlphabetic || scalar.properties.isJoinControl
    }
}

private func split(
    _ pattern: NSRegularExpression, _ behavior: String, inverted: Bool
) throws -> Cutting {
    let flipped: @Sendable (String) -> [(String, Bool)] = { text in
        parts(text, pattern).map { ($0.0, $0.1 != inverted) }
    }
    switch behavior {
    case "Removed": return { flipped($0).filter { !$0.1 }.map { $0.0 } }
    case "Isolated": return { flipped($0).map { $0.0 } }
    case "MergedWithPrevious": return { merged(flipped($0)) { $0 + $1 } }
    case "MergedWithNext": return { merged(flipped($0).reversed()) { $1 + $0 }.reversed() }
    default: throw unread("a split of kind \(behavior)")
    }
}

/// Matches of a pattern, and what lies between them; without empty ones.
private func parts(_ text: String, _ pattern: NSRegularExpression) -> [(String, Bool)] {
    let units = Array(text.utf16)
    func cut(_ from: Int, _ to: Int) -> String { String(decoding: units[from..<to], as: UTF16.self) }
    var found: [(String, Bool)] = []
    var at = 0
    for match in pattern.matches(in: text, range: NSRange(location: 0, length: units.count)) where match.range.length > 0 {
        let begin = match.range.location
        if begin > at { found.append((cut(at, begin), false)) }
        at = begin + match.range.length
        found.append((cut(begin, at), true))
    }
    if at < units.count { found.append((cut(at, units.count), false)) }
    return found
}

/// Each match joins the part before it, if that is none itself.
private func merged(_ parts: [(String, Bool)], _ join: (String, String) -> String) -> [String] {
    var found: [String] = []
    var matched = false
    for (part, match) in parts {
        if match, !matched, let last = found.popLast() { found.append(join(last, part)) } else { found.append(part) }
        matched = match
    }
    return found
}

private func byteLevel(_ part: JSON) throws -> Cutting {
    let prefix = try part.find("add_prefix_space")?.truth ?? true
    let cut = try part.find("use_regex")?.truth ?? true
    let pattern = try portable(gpt2)
    return { text in
        let whole = prefix && text.utf8.first != UInt8(ascii: " ") ? " " + text : text
        let found = cut ? parts(whole, pattern).map { $0.0 } : [whole]
        return found.map { one in string(one.utf8.map { letters[Int($0)] }) }
    }
}

/// A visible letter for every byte, as GPT-2 has them.
private let letters: [Unicode.Scalar] = {
    let visible = Array(0x21...0x7E) + Array(0xA1...0xAC) + Array(0xAE...0xFF)
    let others = (0...255).filter { !visible.contains($0) }
    return (0...255).map { byte in
        let place = others.firstIndex(of: byte).map { 256 + $0 } ?? byte
        return Unicode.Scalar(UInt16(place))!
    }
}()

// MARK: - Patterns

private func expression(_ part: JSON) throws -> NSRegularExpression {
    if let text = try part.find("String") {
        return try NSRegularExpression(pattern: NSRegularExpression.escapedPattern(for: text.text))
    }
    return try portable(part["Regex"].text)
}

/// A pattern of Rust's or Oniguruma's with classes that mean the same on every platform.
private func portable(_ pattern: String) throws -> NSRegularExpression {
    let space = #"\t-\r\u0085\p{Z}"# // White_Space of Unicode
    let source = Array(pattern.unicodeScalars)
    var out = ""
    var depth = 0
    var at = 0
    while at < source.count {
        let scalar = source[at]
        guard scalar == "\\", at + 1 < source.count else {
            if scalar == "[" { depth += 1 }
            if scalar == "]", depth > 0 { depth -= 1 }
            out.unicodeScalars.append(scalar)
            at += 1
            continue
        }
        let escaped = source[at + 1]
        switch escaped {
        case "s": out += depth > 0 ? space : "[\(space)]"
        case "S" where depth == 0: out += "[^\(space)]"
        case "d": out += #"\p{Nd}"#
        case "S", "D", "w", "W", "b", "B", "h": throw unread("a pattern with \\\(escaped)")
        default: out += "\\" + String(escaped)
        }
        at += 2
    }
    guard let made = try? NSRegularExpression(pattern: out) else { throw unread("the pattern \(pattern)") }
    return made
}

// MARK: - Models

private func modelReader(_ part: JSON) throws -> Reading {
    let kind = try part.find("type")?.text ?? "BPE"
    switch kind {
    case "WordLevel":
        let ids = try vocabulary(part["vocab"])
        let unknown = ids[Symbol(try part["unk_token"].text.utf8)]
        return { word in [ids[Symbol(word.utf8)] ?? unknown].compactMap { $0 } }
    case "BPE":
        let pairs = try BytePairs(part)
        return { pairs.read($0) }
    default: throw unread("a model of kind \(kind)")
    }
}

private func vocabulary(_ part: JSON) throws -> [Symbol: Int] {
    let pairs = try part.fields.map { (Symbol($0.key.utf8), try $0.value.whole) }
    return Dictionary(pairs) { _, last in last }
}

/// The token of a byte that no other token has.
private func byteToken(_ byte: Int) -> String {
    let digits = String(byte, radix: 16, uppercase: true)
    return "<0x" + (byte < 16 ? "0" : "") + digits + ">"
}

/// The two symbols of a merge, which is one text or two.
private func halves(_ merge: JSON) throws -> [Symbol] {
    guard merge.isText else { return try merge.texts.map { Symbol($0.utf8) } }
    let space = UInt8(ascii: " ")
    return try merge.text.utf8.split(separator: space, maxSplits: 1, omittingEmptySubsequences: false).map { Symbol($0) }
}

private struct BytePairs: Sendable {
    private struct Pair: Hashable {
        let left: Int
        let right: Int
    }

    private let ids: [Symbol: Int]
    private let unknown: Int?
    private let fuses: Bool
    private let prefix: Symbol
    private let suffix: Symbol
    private let bytes: [Int?]
    private let wholeFirst: Bool
    private let ranks: [Pair: Int]
    private let made: [Int]

    init(_ part: JSON) throws {
        let ids = try vocabulary(part["vocab"])
        let prefix = Symbol((try part.find("continuing_subword_prefix")?.text ?? "").utf8)
        guard try part.find("dropout")?.number ?? 0 == 0 else { throw unread("byte pairs with dropout") }
        func id(_ symbol: Symbol) throws -> Int {
            guard let found = ids[symbol] else {
                throw unread("a merge of '\(String(decoding: symbol, as: UTF8.self))', which is no token")
            }
            return found
        }
        var ranks: [Pair: Int] = [:]
        var made: [Int] = []
        for (rank, merge) in try part["merges"].items.enumerated() {
            let both = try halves(merge)
            guard both.count == 2 else { throw unread("a merge that is no pair") }
            let pair = Pair(left: try id(both[0]), right: try id(both[1]))
            ranks[pair] = rank
            made.append(try id(both[0] + both[1].dropFirst(prefix.count)))
        }
        let falls = try part.find("byte_fallback")?.truth == true
        self.ids = ids
        self.prefix = prefix
        self.ranks = ranks
        self.made = made
        unknown = try part.find("unk_token").flatMap { ids[Symbol(try $0.text.utf8)] }
        fuses = try part.find("fuse_unk")?.truth == true
        suffix = Symbol((try part.find("end_of_word_suffix")?.text ?? "").utf8)
        wholeFirst = try part.find("ignore_merges")?.truth == true
        bytes = falls ? (0...255).map { ids[Symbol(byteToken($0).utf8)] } : []
    }

    func read(_ word: String) -> [Int] {
        if wholeFirst, let id = ids[Symbol(word.utf8)] { return [id] }
        var symbols = characters(word)
        while symbols.count > 1 {
            var best: (rank: Int, at: Int)?
            for i in 0..<symbols.count - 1 {
                guard let rank = ranks[Pair(left: symbols[i], right: symbols[i + 1])] else { continue }
                if rank < best?.rank ?? Int.max { best = (rank, i) }
            }
            guard let best else { break }
            symbols[best.at] = made[best.rank]
            symbols.remove(at: best.at + 1)
        }
        return symbols
    }

    private func characters(_ word: String) -> [Int] {
        var found: [Int] = []
        var missing = false // the last character was unknown
        let scalars = Array(word.unicodeScalars)
        for (i, scalar) in scalars.enumerated() {
            var symbol: Symbol = i > 0 ? prefix : []
            symbol += Symbol(String(scalar).utf8)
            if i == scalars.count - 1 { symbol += suffix }
            if let id = ids[symbol] {
                found.append(id)
                missing = false
            } else if let fallback = inBytes(symbol) {
                found += fallback
                missing = false
            } else {
                if let unknown, !(missing && fuses) { found.append(unknown) }
                missing = true
            }
        }
        return found
    }

    private func inBytes(_ symbol: Symbol) -> [Int]? {
        if bytes.isEmpty { return nil }
        let found = symbol.compactMap { bytes[Int($0)] }
        return found.count == symbol.count ? found : nil
    }
}

// MARK: - Post-processors

private func postProcessor(_ part: JSON) throws -> Framing {
    let kind = try part["type"].text
    switch kind {
    case "ByteLevel": return { $0 }
    case "Sequence":
        let all = try part["processors"].items.map(postProcessor)
        return { tokens in all.reduce(tokens) { $1($0) } }
    case "RobertaProcessing", "BertProcessing":
        let begin = try part["cls"].items[1].whole
        let end = try part["sep"].items[1].whole
        return { [Token(id: begin, piece: "")] + $0 + [Token(id: end, piece: "")] }
    case "TemplateProcessing":
        let special = try part["special_tokens"]
        let places = try part["single"].items.map { place -> [Int]? in
            guard let token = try place.find("SpecialToken") else { return nil }
            return try special[token["id"].text]["ids"].wholes
        }
        return { tokens in places.flatMap { ids in ids.map { $0.map { Token(id: $0, piece: "") } } ?? tokens } }
    default: throw unread("a post-processor of kind \(kind)")
    }
}
