import Foundation
#if canImport(CryptoKit)
import CryptoKit
#endif

/// SHA-256 of a file, in hexadecimal. `counted` gets the bytes of every part, once it was read.
func sha256(of file: URL, counted: (Int) -> Void = { _ in }) throws -> String {
    let handle: FileHandle
    do {
        handle = try FileHandle(forReadingFrom: file)
    } catch {
        throw Refused(.bundle, "\(file.lastPathComponent) cannot be read.", remedy: installAgain)
    }
    defer { try? handle.close() }
    var hasher = Hasher256()
    while let part = try handle.read(upToCount: 1 << 20), !part.isEmpty {
        hasher.update(part)
        counted(part.count)
    }
    return hasher.finished()
}

/// SHA-256 of bytes, in hexadecimal.
public func sha256(of bytes: Data) -> String {
    var hasher = Hasher256()
    hasher.update(bytes)
    return hasher.finished()
}

/// Refuse a file that has another hash than the exported one.
func checkHash(_ name: String, found: String, expected: String) throws {
    if found == expected { return }
    let said = "\(name) is not the exported file: its SHA-256 is \(found.prefix(12))…, expected \(expected.prefix(12))…."
    throw Refused(.hash, said, remedy: installAgain)
}

private func hexadecimal<Bytes: Sequence>(_ bytes: Bytes) -> String where Bytes.Element == UInt8 {
    bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
}

#if canImport(CryptoKit)
private struct Hasher256 {
    private var inner = CryptoKit.SHA256()

    mutating func update(_ bytes: Data) { inner.update(data: bytes) }

    func finished() -> String { hexadecimal(inner.finalize()) }
}
#else
/// FIPS 180-4, where Apple's own is not to be had.
private struct Hasher256 {
    private static let constants: [UInt32] = [
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
    ]
    private var state: [UInt32] = [
        0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
    ]
    private var rest: [UInt8] = []
    private var count: UInt64 = 0

    mutating func update(_ bytes: Data) {
        count += UInt64(bytes.count)
        rest += [UInt8](bytes)
        let whole = rest.count / 64 * 64
        for begin in stride(from: 0, to: whole, by: 64) { block(rest[begin..<begin + 64]) }
        rest.removeFirst(whole)
    }

    func finished() -> String {
        var last = self
        let bits = count * 8
        last.rest.append(0x80)
        while last.rest.count % 64 != 56 { last.rest.append(0) }
        for shift: UInt64 in [56, 48, 40, 32, 24, 16, 8, 0] { last.rest.append(UInt8(truncatingIfNeeded: bits >> shift)) }
        for begin in stride(from: 0, to: last.rest.count, by: 64) { last.block(last.rest[begin..<begin + 64]) }
        let shifts: [UInt32] = [24, 16, 8, 0]
        return hexadecimal(last.state.flatMap { word in shifts.map { UInt8(truncatingIfNeeded: word >> $0) } })
    }

    private mutating func block(_ bytes: ArraySlice<UInt8>) {
        var words = [UInt32](repeating: 0, count: 64)
        for (i, byte) in bytes.enumerated() { words[i / 4] |= UInt32(byte) << UInt32(24 - 8 * (i % 4)) }
        for i in 16..<64 {
            let low = turned(words[i - 15], 7) ^ turned(words[i - 15], 18) ^ (words[i - 15] >> 3)
            let high = turned(words[i - 2], 17) ^ turned(words[i - 2], 19) ^ (words[i - 2] >> 10)
            words[i] = words[i - 16] &+ low &+ words[i - 7] &+ high
        }
        var s = state
        for i in 0..<64 {
            let high = turned(s[4], 6) ^ turned(s[4], 11) ^ turned(s[4], 25)
            let choice = (s[4] & s[5]) ^ (~s[4] & s[6])
            let first = s[7] &+ high &+ choice &+ Self.constants[i] &+ words[i]
            let low = turned(s[0], 2) ^ turned(s[0], 13) ^ turned(s[0], 22)
            let most = (s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2])
            s = [first &+ low &+ most, s[0], s[1], s[2], s[3] &+ first, s[4], s[5], s[6]]
        }
        for i in 0..<8 { state[i] = state[i] &+ s[i] }
    }

    private func turned(_ word: UInt32, _ by: UInt32) -> UInt32 { (word >> by) | (word << (32 - by)) }
}
#endif
