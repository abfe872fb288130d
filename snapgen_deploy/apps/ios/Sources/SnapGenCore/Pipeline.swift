import Foundation

/// Runs a bundle's components; there is one for each runtime. Calls come one after the other.
public protocol Engine: AnyObject, Sendable {
    /// Name and version of the runtime, for the record.
    var about: [(String, JSONText)] { get }

    /// Make a component ready to run, if it is not. Throws `Refused`.
    func load(_ component: Component) async throws

    /// Give a component's memory back.
    func unload(_ component: Component) async

    /// The outputs of a component by name; it is loaded by then. Throws `Refused`.
    func run(_ component: Component, _ inputs: [String: Tensor]) async throws -> [String: [Float]]
}

/// What is being done, for the one who waits.
public enum DrawingProgress: Equatable, Sendable {
    /// Files are held against their hashes: a share of 1.
    case checking(Double)
    /// A component is being loaded. `compiling`: the system prepares it for this device, which the first time takes longest.
    case loading(String, compiling: Bool)
    case reading
    /// `step` counts from 1.
    case drawing(step: Int, of: Int)
    case decoding
}

/// What to draw. `steps`, `negative` and `scale`: nil takes the bundle's own.
public struct Request: Sendable {
    public var prompt: String
    public var seed: UInt64
    public var steps: Int?
    public var negative: String?
    public var scale: Float?

    public init(_ prompt: String, seed: UInt64, steps: Int? = nil, negative: String? = nil, scale: Float? = nil) {
        self.prompt = prompt
        self.seed = seed
        self.steps = steps
        self.negative = negative
        self.scale = scale
    }
}

/// Milliseconds of a picture.
public struct Times: Sendable {
    public var load = 0.0
    public var encode = 0.0
    public var steps: [Double] = []
    public var decode = 0.0
    public var all = 0.0
}

/// A picture (3, H, W) in -1 ... 1, and how long it took.
public struct Drawn: Sendable {
    public let picture: [Float]
    public let times: Times
}

/// Draws pictures with a bundle's components, one after the other. Cancelling the task gives a picture up before its next call.
public actor Pipeline {
    public nonisolated let bundle: ModelBundle
    public nonisolated let readers: [PromptReader]
    private let engine: Engine
    private let thrifty: Bool
    private var negative: (prompt: String, inputs: [String: Tensor])? // the last negative prompt, encoded once
    private var loading = 0.0
    private var busy = false

    /// `thrifty`: hold one component at a time: less memory, and each picture loads all of them again.
    public init(_ bundle: ModelBundle, engine: Engine, thrifty: Bool = false) throws {
        self.bundle = bundle
        self.engine = engine
        self.thrifty = thrifty
        readers = try bundle.readers()
        if let lost = readers.first(where: { bundle.components[$0.encoder] == nil }) {
            throw Refused(.bundle, "The bundle has no \(lost.encoder).", remedy: exportAgain)
        }
    }

    /// Load every component, unless one is held at a time.
    public func load() async throws {
        if thrifty { return }
        for component in bundle.components.values.sorted(by: { $0.role < $1.role }) {
            try giveUp()
            try await engine.load(component)
        }
    }

    /// Give the memory of all components back; the next picture loads them again.
    public func unload() async {
        for component in bundle.components.values { await engine.unload(component) }
    }

    /// Draw a picture. Throws `Refused`.
    public func draw(_ request: Request, progress: @Sendable (DrawingProgress) -> Void = { _ in }) async throws -> Drawn {
        try await draw(request, given: [:], progress: progress)
    }

    /// As `draw`; `given` has text inputs that no encoder makes: rows of the prompt, then of the negative prompt.
    func draw(
        _ request: Request, given: [String: [Tensor]], progress: @Sendable (DrawingProgress) -> Void
    ) async throws -> Drawn {
        guard !busy else { throw Refused(.runtime, "Another picture is being drawn.", remedy: "Wait for it, or cancel it.") }
        busy = true
        defer { busy = false }
        do {
            return try await drawAll(request, given, progress)
        } catch {
            if thrifty { await unload() }
            throw error
        }
    }

    private func drawAll(
        _ request: Request, _ given: [String: [Tensor]], _ progress: @Sendable (DrawingProgress) -> Void
    ) async throws -> Drawn {
        let plan = try steps(of: bundle.manifest, count: request.steps)
        guard request.prompt.contains(where: { !$0.isWhitespace }) else {
            throw Refused(.empty, "There is no prompt.", remedy: "Say what to draw.")
        }
        var times = Times()
        let begun = now()
        loading = 0
        progress(.reading)
        try giveUp()
        var rows = [try await text(request.prompt, given, kind: 0)]
        if let guidance = bundle.guidance {
            rows.append(try await away(request.negative ?? guidance.negativePrompt, given))
        }
        for reader in readers { await release(bundle.components[reader.encoder]) }
        times.encode = now() - begun
        let prompts = rows
        let names = prompts[0].keys
        let joined = Dictionary(uniqueKeysWithValues: names.map { name in (name, stacked(prompts.compactMap { $0[name] })) })
        let size = bundle.latent.reduce(1, *)
        let drawn = noise(seed: request.seed, count: size * (1 + plan.filter { $0.added != 0 }.count))
        var latent = drawn.prefix(size).map { bundle.start * $0 }
        var used = size
        for (i, step) in plan.enumerated() {
            let start = now()
            progress(.drawing(step: i + 1, of: plan.count))
            try giveUp()
            var inputs = joined
            inputs["latent"] = stacked(prompts.map { _ in .floats(latent, shape: [1] + bundle.latent) })
            inputs["time_features"] = stacked(prompts.map { _ in .floats(step.features, shape: [1, step.features.count]) })
            let velocity = try output("velocity", of: try await run(bundle.student, inputs))
            let single = bundle.guidance.map { guided(velocity, scale: request.scale ?? $0.scale) } ?? velocity
            latent = stepped(latent, single, step, fresh: drawn[used...])
            if step.added != 0 { used += size }
            times.steps.append(now() - start)
        }
        await release(bundle.student)
        let start = now()
        progress(.decoding)
        try giveUp()
        let made = try await run(bundle.decoder, ["latent": .floats(latent, shape: [1] + bundle.latent)])
        let picture = try output("picture", of: made)
        await release(bundle.decoder)
        (times.decode, times.all, times.load) = (now() - start, now() - begun, loading)
        return Drawn(picture: picture, times: times)
    }

    /// Run a component, which is loaded for it where it is not.
    func run(_ component: Component, _ inputs: [String: Tensor]) async throws -> [String: [Float]] {
        let start = now()
        try await engine.load(component)
        loading += now() - start
        return try await engine.run(component, inputs)
    }

    private func release(_ component: Component?) async {
        if thrifty, let component { await engine.unload(component) }
    }

    private func giveUp() throws {
        if Task.isCancelled { throw Refused(.cancelled, "Cancelled.", remedy: "Draw again.") }
    }

    private func output(_ name: String, of made: [String: [Float]]) throws -> [Float] {
        guard let found = made[name] else {
            throw Refused(.runtime, "A component gave no \(name).", remedy: exportAgain)
        }
        return found
    }

    private func now() -> Double { Double(DispatchTime.now().uptimeNanoseconds) / 1e6 }

    private func away(_ prompt: String, _ given: [String: [Tensor]]) async throws -> [String: Tensor] {
        if given.isEmpty, let kept = negative, kept.prompt == prompt { return kept.inputs }
        let made = try await text(prompt, given, kind: 1)
        negative = (prompt, made)
        return made
    }

    /// The student's text inputs of one prompt, a row each.
    private func text(_ prompt: String, _ given: [String: [Tensor]], kind: Int) async throws -> [String: Tensor] {
        var found: [String: Tensor] = [:]
        for reader in readers {
            let read = try reader.read(prompt)
            guard let encoder = bundle.components[reader.encoder] else { continue }
            let shape = [1, reader.length]
            let tokens = Tensor.ints(read.tokens, shape: shape)
            let made = try await run(encoder, ["tokens": tokens, "mask": .floats(read.mask, shape: shape)])
            for port in encoder.outputs {
                found[port.name] = .floats(try output(port.name, of: made), shape: [1] + port.shape.dropFirst())
            }
            let seen = Array(read.mask[reader.dropped...])
            found["\(reader.stream)_mask"] = .floats(seen, shape: [1, seen.count])
        }
        for port in bundle.student.inputs where bundle.absent.contains(stream(port.name)) {
            let shape = [1] + port.shape.dropFirst()
            found[port.name] = .floats([Float](repeating: 0, count: shape.reduce(1, *)), shape: shape)
        }
        for (name, rows) in given { found[name] = rows[kind] }
        return found
    }

    private func stream(_ port: String) -> String {
        for ending in ["_mask", "_pooled"] where port.hasSuffix(ending) { return String(port.dropLast(ending.count)) }
        return port
    }
}
