import Foundation

/// The samplers that this package draws with.
let samplers: Set<String> = ["euler", "linear"]

/// A step of the sampler: noise level, the next one, and the student's features of it.
public struct Step: Sendable {
    public let sigma: Double
    public let next: Double
    public let features: [Float]
    /// What the step keeps of the latent, and takes of the student's output and of new noise.
    let keep: Float
    let scale: Float
    let added: Float

    /// `rule`: keep, scale and added; nil: those of Euler's method.
    init(sigma: Double, next: Double, features: [Float], rule: [Float]? = nil) {
        self.sigma = sigma
        self.next = next
        self.features = features
        let rule = rule ?? [1, Float(next - sigma), 0]
        keep = rule[0]
        scale = rule[1]
        added = rule[2]
    }
}

/// The steps of a picture. `count`: other than the model's own, with which its pictures are right.
func steps(of manifest: JSON, count: Int? = nil) throws -> [Step] {
    let schedule = try manifest["schedule"]
    let sigmas = try schedule["sigmas"].numbers
    let features = try schedule["time_features"]
    let own = sigmas.count - 1
    guard let count, count != own else {
        let rules = try schedule.find("coefficients")?.items.map { try $0.floats }
        return try features["values"].items.enumerated().map { i, row in
            Step(sigma: sigmas[i], next: sigmas[i + 1], features: try row.floats, rule: rules?[i])
        }
    }
    guard try sampler(of: manifest) == "euler", try schedule.find("timesteps") == nil else {
        throw Refused(.bundle, "This model draws in \(own) steps, no other number.", remedy: "Leave the number of steps out.")
    }
    let shift = try schedule["shift"].number
    let width = try features["count"].whole
    let levels = (0..<count).map { 1 - Double($0) / Double(count) }.map { shift * $0 / (1 + (shift - 1) * $0) }
    return levels.enumerated().map { i, sigma in
        Step(sigma: sigma, next: i + 1 < count ? levels[i + 1] : 0, features: timeFeatures(sigma, count: width))
    }
}

func sampler(of manifest: JSON) throws -> String { try manifest["schedule"].find("sampler")?.text ?? "euler" }

/// Cosines, then sines, of 1000 * sigma at falling frequencies.
func timeFeatures(_ sigma: Double, count: Int) -> [Float] {
    let half = count / 2
    let angles = (0..<half).map { i -> Double in
        let frequency = Float(exp(Double(Float(-log(10000.0) * Double(i)) / Float(half))))
        return Double(1000 * Float(sigma) * frequency)
    }
    return angles.map { Float(cos($0)) } + angles.map { Float(sin($0)) }
}

/// One step, in single precision; `fresh` is new noise, where the step adds some.
func stepped(_ latent: [Float], _ velocity: [Float], _ step: Step, fresh: ArraySlice<Float>) -> [Float] {
    let moved = zip(latent, velocity).map { step.keep * $0 + step.scale * $1 }
    return step.added == 0 ? moved : zip(moved, fresh).map { $0 + step.added * $1 }
}

/// Classifier-free guidance of the rows (prompt, negative prompt): negative + scale * (prompt - negative).
func guided(_ velocity: [Float], scale: Float) -> [Float] {
    let half = velocity.count / 2
    return (0..<half).map { velocity[half + $0] + scale * (velocity[$0] - velocity[half + $0]) }
}

/// A picture (3, H, W) in -1 ... 1 as bytes (red, green, blue, alpha), row by row; halves go to even numbers.
public func pixels(of picture: [Float], height: Int, width: Int) throws -> [UInt8] {
    let size = height * width
    guard picture.count == 3 * size, picture.allSatisfy(\.isFinite) else {
        throw Refused(
            .finite, "The model returned values that are not finite on this device.",
            remedy: "Try another precision or target of the bundle."
        )
    }
    var out = [UInt8](repeating: 255, count: 4 * size)
    for i in 0..<size {
        for c in 0..<3 {
            let value = (min(1, max(-1, picture[c * size + i])) + 1) * 127.5
            out[4 * i + c] = UInt8(value.rounded(.toNearestOrEven))
        }
    }
    return out
}
