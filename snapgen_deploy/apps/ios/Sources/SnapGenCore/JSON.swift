import Foundation

private let deepest = 200

/// A value of a JSON document that knows its place in it, for messages. Wrong kinds are refused by name.
public struct JSON: Sendable {
    /// Fields keep the order of the file; equal keys are told apart by their code points, which Swift's own strings are not.
    indirect enum Value: Sendable {
        case null
        case truth(Bool)
        case number(Double)
        case text(String)
        case items([Value])
        case fields([(key: String, value: Value)])
    }

    let value: Value
    let place: String

    /// Parse a document; `name` stands for it in messages.
    public static func parse(_ bytes: Data, name: String) throws -> JSON {
        var parser = Parser(bytes: [UInt8](bytes), name: name)
        return JSON(value: try parser.document(), place: name)
    }

    /// The field `key` of an object.
    public subscript(key: String) -> JSON {
        get throws {
            guard let found = try find(key) else { throw refused("\(place) has no \(key).") }
            return found
        }
    }

    /// The field `key` of an object, or nil where it is missing or null.
    public func find(_ key: String) throws -> JSON? {
        guard let found = try fieldList().first(where: { $0.key == key }) else { return nil }
        if case .null = found.value { return nil }
        return JSON(value: found.value, place: "\(place).\(key)")
    }

    /// The fields of an object, in the order of the file.
    public var fields: [(key: String, value: JSON)] {
        get throws { try fieldList().map { ($0.key, JSON(value: $0.value, place: "\(place).\($0.key)")) } }
    }

    /// The elements of an array.
    public var items: [JSON] {
        get throws {
            guard case .items(let list) = value else { throw wrong("an array") }
            return list.enumerated().map { JSON(value: $1, place: "\(place)[\($0)]") }
        }
    }

    public var text: String {
        get throws {
            guard case .text(let found) = value else { throw wrong("a text") }
            return found
        }
    }

    public var number: Double {
        get throws {
            guard case .number(let found) = value else { throw wrong("a number") }
            return found
        }
    }

    public var truth: Bool {
        get throws {
            guard case .truth(let found) = value else { throw wrong("true or false") }
            return found
        }
    }

    /// A whole number; those beyond 2^53 are texts in a bundle.
    public var whole: Int {
        get throws {
            let found = try number
            guard found == found.rounded(), abs(found) < 9.1e15 else { throw wrong("a whole number") }
            return Int(found)
        }
    }

    public var numbers: [Double] { get throws { try items.map { try $0.number } } }
    public var floats: [Float] { get throws { try items.map { Float(try $0.number) } } }
    public var wholes: [Int] { get throws { try items.map { try $0.whole } } }
    public var texts: [String] { get throws { try items.map { try $0.text } } }

    /// Whether it is a text, and not another kind of value.
    public var isText: Bool {
        if case .text = value { return true }
        return false
    }

    private func fieldList() throws -> [(key: String, value: Value)] {
        guard case .fields(let list) = value else { throw wrong("an object") }
        return list
    }

    private func wrong(_ expected: String) -> Refused { refused("\(place) is not \(expected).") }

    private func refused(_ said: String) -> Refused { Refused(.bundle, said, remedy: exportAgain) }
}

/// What a record has: it becomes JSON in one line, with fields in this order.
public indirect enum JSONText: Sendable {
    case text(String)
    case number(Int)
    case truth(Bool)
    case list([JSONText])
    case fields([(String, JSONText)])

    /// The value as JSON.
    public var line: String {
        switch self {
        case .text(let text): return quoted(text)
        case .number(let number): return String(number)
        case .truth(let truth): return truth ? "true" : "false"
        case .list(let items): return "[" + items.map(\.line).joined(separator: ", ") + "]"
        case .fields(let fields):
            return "{" + fields.map { quoted($0.0) + ": " + $0.1.line }.joined(separator: ", ") + "}"
        }
    }
}

private func quoted(_ text: String) -> String {
    var out = "\""
    for scalar in text.unicodeScalars {
        switch scalar {
        case "\"", "\\": out += "\\" + String(scalar)
        case "\n": out += "\\n"
        case _ where scalar.value < 0x20:
            let digits = String(scalar.value, radix: 16)
            out += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
        default: out.unicodeScalars.append(scalar)
        }
    }
    return out + "\""
}

private struct Parser {
    let bytes: [UInt8]
    let name: String
    var at = 0

    init(bytes: [UInt8], name: String) {
        self.bytes = bytes
        self.name = name
    }

    mutating func document() throws -> JSON.Value {
        let found = try value(0)
        space()
        guard at == bytes.count else { throw fault("ends before its end") }
        return found
    }

    private mutating func value(_ depth: Int) throws -> JSON.Value {
        guard depth <= deepest else { throw fault("is nested too deeply") }
        space()
        switch try peek() {
        case UInt8(ascii: "{"): return try fields(depth)
        case UInt8(ascii: "["): return try items(depth)
        case UInt8(ascii: "\""): return .text(try string())
        case UInt8(ascii: "t"): return try word("true", .truth(true))
        case UInt8(ascii: "f"): return try word("false", .truth(false))
        case UInt8(ascii: "n"): return try word("null", .null)
        default: return try number()
        }
    }

    private mutating func fields(_ depth: Int) throws -> JSON.Value {
        var found: [(key: String, value: JSON.Value)] = []
        at += 1
        if try closes("}") { return .fields(found) }
        repeat {
            space()
            guard try peek() == UInt8(ascii: "\"") else { throw fault("has a field without a name") }
            let key = try string()
            space()
            guard try peek() == UInt8(ascii: ":") else { throw fault("has a field without a value") }
            at += 1
            found.append((key, try value(depth + 1)))
        } while try continues("}")
        return .fields(found)
    }

    private mutating func items(_ depth: Int) throws -> JSON.Value {
        var found: [JSON.Value] = []
        at += 1
        if try closes("]") { return .items(found) }
        repeat { found.append(try value(depth + 1)) } while try continues("]")
        return .items(found)
    }

    private mutating func closes(_ end: Unicode.Scalar) throws -> Bool {
        space()
        guard try peek() == UInt8(ascii: end) else { return false }
        at += 1
        return true
    }

    private mutating func continues(_ end: Unicode.Scalar) throws -> Bool {
        space()
        let byte = try peek()
        at += 1
        guard byte == UInt8(ascii: ",") || byte == UInt8(ascii: end) else { throw fault("lacks a comma") }
        return byte == UInt8(ascii: ",")
    }

    private mutating func string() throws -> String {
        at += 1
        var out: [UInt8] = []
        while true {
            let byte = try peek()
            at += 1
            switch byte {
            case UInt8(ascii: "\""): return String(decoding: out, as: UTF8.self)
            case UInt8(ascii: "\\"): out += Array(String(try escape()).utf8)
            case 0..<0x20: throw fault("has a control character in a text")
            default: out.append(byte)
            }
        }
    }

    private mutating func escape() throws -> Unicode.Scalar {
        let byte = try peek()
        at += 1
        switch byte {
        case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): return Unicode.Scalar(byte)
        case UInt8(ascii: "b"): return "\u{8}"
        case UInt8(ascii: "f"): return "\u{c}"
        case UInt8(ascii: "n"): return "\n"
        case UInt8(ascii: "r"): return "\r"
        case UInt8(ascii: "t"): return "\t"
        case UInt8(ascii: "u"):
            let first = try unit()
            if (0xD800..<0xDC00).contains(first), at + 1 < bytes.count, bytes[at] == UInt8(ascii: "\\"),
               bytes[at + 1] == UInt8(ascii: "u") {
                at += 2
                let second = try unit()
                guard (0xDC00..<0xE000).contains(second) else { throw fault("has a wrong escape") }
                return try scalar(0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00))
            }
            return try scalar(first)
        default: throw fault("has a wrong escape")
        }
    }

    private mutating func unit() throws -> UInt32 {
        guard at + 4 <= bytes.count, let code = UInt32(String(decoding: bytes[at..<at + 4], as: UTF8.self), radix: 16) else {
            throw fault("has a wrong escape")
        }
        at += 4
        return code
    }

    private func scalar(_ code: UInt32) throws -> Unicode.Scalar {
        guard let found = Unicode.Scalar(code) else { throw fault("has a wrong escape") }
        return found
    }

    private mutating func number() throws -> JSON.Value {
        let begin = at
        let allowed = Set("0123456789+-.eE".utf8)
        while at < bytes.count, allowed.contains(bytes[at]) { at += 1 }
        guard let found = Double(String(decoding: bytes[begin..<at], as: UTF8.self)) else {
            throw fault("has no value where one is expected")
        }
        return .number(found)
    }

    private mutating func word(_ word: String, _ value: JSON.Value) throws -> JSON.Value {
        guard bytes[at...].starts(with: word.utf8) else { throw fault("has no value where one is expected") }
        at += word.utf8.count
        return value
    }

    private mutating func space() {
        while at < bytes.count, [0x20, 0x09, 0x0D, 0x0A].contains(bytes[at]) { at += 1 }
    }

    private func peek() throws -> UInt8 {
        guard at < bytes.count else { throw fault("ends too early") }
        return bytes[at]
    }

    private func fault(_ what: String) -> Refused {
        Refused(.bundle, "\(name) is no JSON: it \(what) at byte \(at).", remedy: exportAgain)
    }
}
