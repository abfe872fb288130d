import Foundation

/// What a text encoder reads: tokens, and a mask that is 1 where it shall look.
public struct Prompt: Equatable, Sendable {
    public let tokens: [Int32]
    public let mask: [Float]
}

/// Prompt -> tokens and mask, by the rule of a text encoder in conformance.json.
public struct PromptReader: Sendable {
    public let encoder: String
    public let stream: String
    public let length: Int
    /// The first tokens that the student does not see.
    let dropped: Int
    let rule: JSON
    private let tokenizer: Tokenizer
    private let template: String
    private let special: Bool
    private let unknown: Int?
    private let pad: Int32
    private let left: Bool
    private let unseen: Float

    init(_ rule: JSON, _ tokenizer: Tokenizer) throws {
        self.rule = rule
        self.tokenizer = tokenizer
        encoder = try rule["encoder"].text
        stream = try rule["stream"].text
        length = try rule["length"].whole
        dropped = try rule["dropped"].whole
        template = try rule["template"].text
        special = try rule["special_tokens"].truth
        unknown = try rule["unknown"].text == "refused" ? rule.find("unknown_token")?.whole : nil
        pad = Int32(try rule["pad"].whole)
        left = try rule["side"].text == "left"
        unseen = try rule["padding_seen"].truth ? 1 : 0
    }

    /// Tokens and mask of a prompt. Throws `Refused` for the prompts that `generate` refuses.
    public func read(_ prompt: String) throws -> Prompt {
        var text = template
        if let place = template.range(of: "{}") { text.replaceSubrange(place, with: prompt) }
        if let unknown {
            var words: [String] = []
            for token in tokenizer.encode(text, specialTokens: false) where token.id == unknown {
                if !words.contains(token.piece) { words.append(token.piece) }
            }
            if !words.isEmpty {
                let said = "The model does not know \(words.map { "“\($0)”" }.joined(separator: ", "))."
                throw Refused(.unknown, said, remedy: "Use other words.")
            }
        }
        let ids = tokenizer.ids(text, specialTokens: special).map { Int32($0) }
        guard ids.count <= length else {
            throw Refused(.long, "The prompt has \(ids.count) tokens, at most \(length) fit.", remedy: "Shorten it.")
        }
        let tokens = [Int32](repeating: pad, count: length - ids.count)
        let mask = [Float](repeating: unseen, count: length - ids.count)
        let ones = [Float](repeating: 1, count: ids.count)
        return left ? Prompt(tokens: tokens + ids, mask: mask + ones) : Prompt(tokens: ids + tokens, mask: ones + mask)
    }
}

extension ModelBundle {
    /// The readers of its text encoders.
    public func readers() throws -> [PromptReader] {
        try rules.map { rule in
            let file = try rule["file"].text
            guard let bytes = try? Data(contentsOf: folder.appendingPathComponent(file)) else {
                throw Refused(.bundle, "\(file) cannot be read.", remedy: installAgain)
            }
            return try PromptReader(rule, Tokenizer(JSON.parse(bytes, name: file)))
        }
    }
}
