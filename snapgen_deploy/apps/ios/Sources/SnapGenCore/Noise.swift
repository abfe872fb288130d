import Foundation

/// The only generator that this package makes; docs/noise.md of snapgen-deploy defines it.
public let noiseGenerator = "philox4x32-10"

private let rounds = 10
private let multiplierA: UInt32 = 0xD2511F53
private let multiplierC: UInt32 = 0xCD9E8D57
private let weylA: UInt32 = 0x9E3779B9
private let weylB: UInt32 = 0xBB67AE85
private let unit = 1.0 / Double(1 << 24)

/// Philox4x32-10: four 32-bit words of a counter (block, 0, 0, 0) and a key of two words, the low one first.
public func philox(block: UInt32, key: UInt64) -> [UInt32] {
    var (a, b, c, d) = (block, UInt32(0), UInt32(0), UInt32(0))
    var (k, m) = (UInt32(truncatingIfNeeded: key), UInt32(truncatingIfNeeded: key >> 32))
    for _ in 0..<rounds {
        let left = a.multipliedFullWidth(by: multiplierA)
        let right = c.multipliedFullWidth(by: multiplierC)
        (a, b, c, d) = (right.high ^ b ^ k, right.low, left.high ^ d ^ m, left.low)
        k = k &+ weylA
        m = m &+ weylB
    }
    return [a, b, c, d]
}

/// `count` standard normal numbers of a seed: the same bits in every language, but for the platform's log, cos and sin.
public func noise(seed: UInt64, count: Int) -> [Float] {
    var out = [Float](repeating: 0, count: count)
    for block in 0..<(count + 3) / 4 {
        let words = philox(block: UInt32(block), key: seed)
        for j in [0, 2] {
            let at = 4 * block + j
            let logarithm = Float(log(Double((words[j] >> 8) + 1) * unit))
            let radius = Float((-2.0 * Double(logarithm)).squareRoot())
            let turn = Double(words[j + 1] >> 8) * (unit * 2.0 * Double.pi)
            if at < count { out[at] = radius * Float(cos(turn)) }
            if at + 1 < count { out[at + 1] = radius * Float(sin(turn)) }
        }
    }
    return out
}
