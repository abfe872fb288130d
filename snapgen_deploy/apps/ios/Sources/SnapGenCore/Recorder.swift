import Foundation

/// How hot the device says it is. The raw value is what a record has.
public enum Thermal: String, CaseIterable, Sendable {
    case nominal, fair, serious, critical
}

/// What a device tells of itself. `memory`: bytes of this process; nil where it is not known.
public struct DeviceState: Sendable {
    public let name: String
    public let memory: Int?
    public let thermal: Thermal?

    public init(name: String, memory: Int?, thermal: Thermal?) {
        self.name = name
        self.memory = memory
        self.thermal = thermal
    }
}

/// Keeps a line for each picture in a file of this app, and sends nothing. docs/formats.md of snapgen-deploy has its fields.
public actor Recorder {
    private let file: URL
    private let kept: Int

    public init(_ file: URL, kept: Int = 500) {
        self.file = file
        self.kept = kept
    }

    /// The lines, the oldest first.
    public func lines() -> [String] {
        let text = (try? String(contentsOf: file, encoding: .utf8)) ?? ""
        return text.split(separator: "\n").map(String.init)
    }

    /// Add a line; beyond `kept` the oldest go.
    public func add(_ line: String) throws {
        let now = (lines() + [line]).suffix(kept)
        try (now.joined(separator: "\n") + "\n").write(to: file, atomically: true, encoding: .utf8)
    }

    /// Forget all lines.
    public func clear() {
        try? FileManager.default.removeItem(at: file)
    }
}

/// What the lines of one app have in common.
public struct Recording: Sendable {
    private let bundle: ModelBundle
    private let runtime: [(String, JSONText)]

    public init(_ bundle: ModelBundle, _ engine: Engine) {
        self.bundle = bundle
        runtime = engine.about
    }

    /// The line of a picture that was drawn.
    public func drawn(_ request: Request, _ begun: Date, _ times: Times, _ device: DeviceState) -> String {
        let rounded: [(String, JSONText)] = [
            ("load", whole(times.load)),
            ("encode", whole(times.encode)),
            ("steps", .list(times.steps.map(whole))),
            ("decode", whole(times.decode)),
            ("all", whole(times.all)),
        ]
        return line(request, begun, device, [("ok", .truth(true)), ("ms", .fields(rounded))])
    }

    /// The line of a picture that was not: `why` is a `Refused.Reason`, or `failed`.
    public func failed(_ request: Request, _ begun: Date, _ error: Error, _ device: DeviceState) -> String {
        let why = (error as? Refused)?.reason.rawValue ?? "failed"
        return line(request, begun, device, [("ok", .truth(false)), ("why", .text(why))])
    }

    private func line(_ request: Request, _ begun: Date, _ device: DeviceState, _ rest: [(String, JSONText)]) -> String {
        let format = ISO8601DateFormatter()
        format.formatOptions = [.withInternetDateTime, .withFractionalSeconds]
        var fields: [(String, JSONText)] = [
            ("app", .text("ios")),
            ("bundle", .text(bundle.name)),
            ("width", .text(bundle.width)),
            ("target", .text(bundle.target)),
            ("precision", .text(bundle.precision)),
            ("runtime", .fields(runtime)),
            ("device", .text(device.name)),
            ("time", .text(format.string(from: begun))),
            ("seed", .text(String(request.seed))),
            ("steps", .number(request.steps ?? bundle.stepCount)),
        ]
        fields += rest
        if let memory = device.memory { fields.append(("memory", .fields([("process", .number(memory))]))) }
        if let thermal = device.thermal { fields.append(("thermal", .text(thermal.rawValue))) }
        return JSONText.fields(fields).line
    }

    private func whole(_ milliseconds: Double) -> JSONText { .number(Int(milliseconds.rounded())) }
}
