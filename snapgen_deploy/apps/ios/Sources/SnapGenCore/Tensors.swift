import Foundation

/// An array with a shape, in C order.
public enum Tensor: Sendable {
    case floats([Float], shape: [Int])
    case ints([Int32], shape: [Int])

    public var shape: [Int] {
        switch self {
        case .floats(_, let shape), .ints(_, let shape): return shape
        }
    }

    /// Its numbers, if they are of single precision.
    var floats: [Float] {
        if case .floats(let data, _) = self { return data }
        return []
    }

    /// Its numbers, if they are whole.
    var ints: [Int32] {
        if case .ints(let data, _) = self { return data }
        return []
    }

    /// One row of it and its shape, with an axis of length 1 in front: `index` counts along the first axes.
    func row(_ index: [Int]) -> Tensor {
        let inner = Array(shape.dropFirst(index.count))
        let size = inner.reduce(1, *)
        let begin = zip(index, shape).reduce(0) { $0 * $1.1 + $1.0 } * size
        switch self {
        case .floats(let data, _): return .floats(Array(data[begin..<begin + size]), shape: [1] + inner)
        case .ints(let data, _): return .ints(Array(data[begin..<begin + size]), shape: [1] + inner)
        }
    }
}

/// Arrays with one row each, one after the other.
func stacked(_ rows: [Tensor]) -> Tensor {
    guard rows.count > 1 else { return rows[0] }
    let shape = [rows.count] + rows[0].shape.dropFirst()
    if case .ints = rows[0] {
        return .ints(rows.flatMap(\.ints), shape: shape)
    }
    return .floats(rows.flatMap(\.floats), shape: shape)
}

/// ||got - expected|| / ||expected||.
public func relativeError(_ got: [Float], _ expected: [Float]) -> Double {
    guard got.count == expected.count else { return .nan }
    var difference = 0.0
    var scale = 0.0
    for (a, b) in zip(got, expected) {
        difference += (Double(a) - Double(b)) * (Double(a) - Double(b))
        scale += Double(b) * Double(b)
    }
    return difference.squareRoot() / max(scale.squareRoot(), 1e-12)
}

/// Peak signal-to-noise ratio in dB of two pictures in -1 ... 1, at most 200.
public func psnr(_ got: [Float], _ expected: [Float]) -> Double {
    guard got.count == expected.count else { return .nan }
    var sum = 0.0
    for (a, b) in zip(got, expected) {
        guard a.isFinite else { return .nan }
        let difference = Double(min(1, max(-1, a))) - Double(min(1, max(-1, b)))
        sum += difference * difference
    }
    return min(200, 10 * log10(4 * Double(got.count) / max(sum, 1e-300)))
}

/// The arrays of a .safetensors file by name; those of other types than F32 and I32 are left out.
func readSafetensors(_ file: URL) throws -> [String: Tensor] {
    let wrong = Refused(.bundle, "\(file.lastPathComponent) is no .safetensors file.", remedy: exportAgain)
    guard let bytes = try? [UInt8](Data(contentsOf: file)), bytes.count >= 8 else { throw wrong }
    let length = bytes[0..<8].reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
    guard length <= UInt64(bytes.count - 8) else { throw wrong }
    let begin = 8 + Int(length)
    let header = try JSON.parse(Data(bytes[8..<begin]), name: file.lastPathComponent)
    var found: [String: Tensor] = [:]
    for (name, about) in try header.fields where name != "__metadata__" {
        let shape = try about["shape"].wholes
        let ends = try about["data_offsets"].wholes
        let count = shape.reduce(1, *)
        guard ends.count == 2, ends[1] - ends[0] == 4 * count, ends[0] >= 0, begin + ends[1] <= bytes.count else { continue }
        let words = (0..<count).map { i -> UInt32 in
            let at = begin + ends[0] + 4 * i
            return (0..<4).reduce(UInt32(0)) { $0 | UInt32(bytes[at + $1]) << UInt32(8 * $1) }
        }
        switch try about["dtype"].text {
        case "F32": found[name] = .floats(words.map { Float(bitPattern: $0) }, shape: shape)
        case "I32": found[name] = .ints(words.map { Int32(bitPattern: $0) }, shape: shape)
        default: continue
        }
    }
    return found
}
