import Foundation

/// A case of conformance.json: which line it is, whether it passed (nil: not run), and what it was about.
public struct Line: Sendable {
    public let line: String
    public let passed: Bool?
    public let detail: String
}

/// Run the cases of conformance.json, from top to bottom. Without a pipeline, calls and picture are said to be not run.
public func conformance(_ bundle: ModelBundle, _ readers: [PromptReader], _ pipeline: Pipeline?) async throws -> [Line] {
    var lines: [Line] = []
    for reader in readers { for one in try reader.rule["cases"].items { lines.append(try tokenizerLine(reader, one)) } }
    let noises = try bundle.cases["noise"]
    for one in try noises["cases"].items { lines.append(try noiseLine(noises, one)) }
    let plan = try steps(of: bundle.manifest)
    let schedule = try bundle.cases["schedule"]
    for (i, step) in try schedule["steps"].items.enumerated() {
        lines.append(try scheduleLine(schedule["tolerance"].number, step, plan[i], i))
    }
    let calls = try bundle.cases["calls"].items
    let picture = try bundle.cases.find("picture")
    guard let pipeline else {
        let left = try calls.map { "call " + (try $0["component"].text) } + (picture == nil ? [] : ["picture"])
        lines += left.map { Line(line: $0, passed: nil, detail: "no runtime here") }
        return lines
    }
    let rows = Rows(arrays: try bundle.vectors(), steps: plan)
    for call in calls { lines += try await callLines(pipeline, call, rows) }
    if let picture { lines.append(try await pictureLine(pipeline, picture, rows)) }
    return lines
}

private func tokenizerLine(_ reader: PromptReader, _ one: JSON) throws -> Line {
    let text = try one["text"].text
    let refused = try one.find("refused")?.text
    var passed = false
    do {
        let read = try reader.read(text)
        if refused == nil {
            let (tokens, mask) = (try one["tokens"].wholes.map { Int32($0) }, try one["mask"].floats)
            passed = read == Prompt(tokens: tokens, mask: mask)
        }
    } catch let error as Refused {
        passed = error.reason.rawValue == refused
    }
    let short = text.count > 40 ? "\(text.prefix(40))…" : text
    let detail = "“\(short)”" + (refused.map { ", refused: " + $0 } ?? "")
    return Line(line: "tokenizer " + reader.encoder, passed: passed, detail: detail)
}

private func noiseLine(_ about: JSON, _ one: JSON) throws -> Line {
    let (seed, count, tolerance) = (try one["seed"].text, try one["count"].whole, try about["tolerance"].number)
    let made = noise(seed: UInt64(seed) ?? 0, count: count).map { Double($0) }
    let mean = made.reduce(0, +) / Double(count)
    let deviation = (made.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Double(count)).squareRoot()
    let expected = [try one["mean"].number, try one["deviation"].number]
    let passed = try about["generator"].text == noiseGenerator && ends(made, one, tolerance)
        && close([mean, deviation], expected, tolerance)
    return Line(line: "noise", passed: passed, detail: "seed \(seed), \(count) numbers")
}

private func scheduleLine(_ tolerance: Double, _ step: JSON, _ made: Step, _ number: Int) throws -> Line {
    let levels = [try step["sigma"].number, try step["next"].number]
    let rule = [made.keep, made.scale, made.added].map { Double($0) }
    let passed = try close([made.sigma, made.next], levels, tolerance)
        && ends(made.features.map { Double($0) }, step["time_features"], tolerance)
        && (step.find("coefficients").map { close(rule, try $0.numbers, tolerance) } ?? true)
    return Line(line: "schedule", passed: passed, detail: "step \(number + 1), level \(made.sigma)")
}

private func callLines(_ pipeline: Pipeline, _ call: JSON, _ rows: Rows) async throws -> [Line] {
    let role = try call["component"].text
    let limit = try call["error"][pipeline.bundle.target].number
    guard let component = pipeline.bundle.components[role] else {
        return [Line(line: "call " + role, passed: false, detail: "the bundle has no such component")]
    }
    let inputs = Dictionary(uniqueKeysWithValues: try call["inputs"].fields.map { ($0.key, try rows.stack($0.value)) })
    let made = try await pipeline.run(component, inputs)
    return try call["outputs"].fields.map { name, told in
        let found = relativeError(made[name] ?? [], try rows.stack(told).floats)
        return Line(line: "call \(role)", passed: found <= limit, detail: "relative error \(found), at most \(limit)")
    }
}

private func pictureLine(_ pipeline: Pipeline, _ one: JSON, _ rows: Rows) async throws -> Line {
    let given = Dictionary(uniqueKeysWithValues: try one["text"].fields.map { ($0.key, try $0.value.items.map(rows.row)) })
    let request = Request(try one["prompt"].text, seed: UInt64(try one["seed"].text) ?? 0)
    let drawn = try await pipeline.draw(request, given: given) { _ in }
    let found = psnr(drawn.picture, try rows.row(one["expected"]).floats)
    let limit = try one["psnr"][pipeline.bundle.target].number
    return Line(line: "picture", passed: found >= limit, detail: "\((found * 10).rounded() / 10) dB, at least \(limit)")
}

/// Rows of the test vectors, and of the schedule's features, as cases name them.
private struct Rows: Sendable {
    let arrays: [String: Tensor]
    let steps: [Step]

    func stack(_ told: JSON) throws -> Tensor { stacked(try told.items.map(row)) }

    func row(_ told: JSON) throws -> Tensor {
        if let step = try told.find("step") {
            let features = steps[try step.whole].features
            return .floats(features, shape: [1, features.count])
        }
        let name = try told["array"].text
        guard let array = arrays[name] else { throw Refused(.bundle, "The test vectors have no \(name).", remedy: exportAgain) }
        return array.row(try told["index"].wholes)
    }
}

private func ends(_ made: [Double], _ one: JSON, _ tolerance: Double) throws -> Bool {
    let (first, last) = (try one["first"].numbers, try one["last"].numbers)
    return close(Array(made.prefix(first.count)), first, tolerance) && close(Array(made.suffix(last.count)), last, tolerance)
}

private func close(_ got: [Double], _ expected: [Double], _ tolerance: Double) -> Bool {
    got.count == expected.count && zip(got, expected).allSatisfy { abs($0 - $1) <= tolerance }
}
