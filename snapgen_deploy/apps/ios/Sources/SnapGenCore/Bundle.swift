import Foundation

/// What is known of a file: its length, and its SHA-256 in hexadecimal.
public struct FileEntry: Sendable {
    public let bytes: Int
    public let sha256: String

    init(_ about: JSON) throws {
        bytes = try about["bytes"].whole
        sha256 = try about["sha256"].text
    }
}

/// An input or output of a component.
public struct ComponentPort: Sendable {
    public let name: String
    public let shape: [Int]

    init(_ role: String, _ about: JSON) throws {
        let kind = try about["dtype"].text
        guard ["float32", "int32"].contains(kind) else {
            throw Refused(.bundle, "\(role) takes or gives \(kind), which this app does not make.", remedy: exportAgain)
        }
        name = try about["name"].text
        shape = try about["shape"].wholes
    }
}

/// One network of the model. `entry` is its function or method where a file holds several.
public struct Component: Sendable {
    public let role: String
    public let path: String
    public let entry: String?
    public let inputs: [ComponentPort]
    public let outputs: [ComponentPort]
    public let files: [String: FileEntry]

    init(_ role: String, _ about: JSON) throws {
        self.role = role
        path = try about["path"].text
        entry = try about.find("entry")?.text
        inputs = try about["inputs"].items.map { try ComponentPort(role, $0) }
        outputs = try about["outputs"].items.map { try ComponentPort(role, $0) }
        files = Dictionary(uniqueKeysWithValues: try about["files"].fields.map { ($0.key, try FileEntry($0.value)) })
    }
}

/// Guidance as the bundle asks for it.
public struct Guidance: Sendable {
    public let scale: Float
    public let negativePrompt: String
}

/// A bundle in a folder: what drawing needs of its manifest and its conformance.json, checked once.
public struct ModelBundle: Sendable {
    public let folder: URL
    public let target: String
    public let name: String
    public let width: String
    public let precision: String
    public let components: [String: Component]
    public let student: Component
    public let decoder: Component
    public let guidance: Guidance?
    /// Channels, height and width of the latent.
    public let latent: [Int]
    /// Height and width of its pictures.
    public let size: (height: Int, width: Int)
    /// Calls of the student for a picture.
    public let stepCount: Int
    /// What the noise is multiplied with at first.
    let start: Float
    /// Every file that drawing needs, besides manifest.json and conformance.json.
    public let files: [String: FileEntry]
    let manifest: JSON
    let cases: JSON
    let rules: [JSON]
    let absent: Set<String>

    /// Read a bundle. `sha256` is that of its manifest.json, which an app knows from its build; nil: not checked.
    public init(folder: URL, target: String, sha256: String?) throws {
        let manifest = try Self.read(folder, "manifest.json", sha256)
        guard try manifest["schema_version"].whole == 1 else {
            throw Refused(.bundle, "This app cannot read the bundle: it has another version.", remedy: exportAgain)
        }
        let cases = try Self.read(folder, "conformance.json", manifest["files"]["conformance.json"]["sha256"].text)
        guard try cases["format"].whole == 1 else {
            throw Refused(.bundle, "This app cannot read conformance.json: it has another version.", remedy: exportAgain)
        }
        guard let about = try manifest["targets"].find(target) else {
            throw Refused(.bundle, "The bundle has no files for \(target).", remedy: exportAgain)
        }
        let parts = try about["components"].fields.map { try Component($0.key, $0.value) }
        let sizes = try manifest["resolution"].wholes
        guard sizes.count == 2 else { throw Refused(.bundle, "manifest.json has no picture size.", remedy: exportAgain) }
        self.folder = folder
        self.target = target
        self.manifest = manifest
        self.cases = cases
        name = try manifest["name"].text
        width = try manifest["width"].text
        precision = try about["precision"].text
        components = Dictionary(uniqueKeysWithValues: parts.map { ($0.role, $0) })
        student = try Self.component(parts, giving: "velocity")
        decoder = try Self.component(parts, giving: "picture")
        guidance = try manifest.find("guidance").map {
            Guidance(scale: Float(try $0["scale"].number), negativePrompt: try $0["negative_prompt"].text)
        }
        latent = Array(student.inputs.first { $0.name == "latent" }?.shape.dropFirst() ?? [])
        size = (sizes[0], sizes[1])
        stepCount = try manifest["schedule"]["sigmas"].items.count - 1
        start = Float(try manifest["schedule"].find("start")?.number ?? 1)
        rules = try cases["tokenizers"].items
        absent = Set(try manifest["config"].find("absent_streams")?.texts ?? [])
        var files: [String: FileEntry] = [:]
        for part in parts { files.merge(part.files) { first, _ in first } }
        for rule in rules { files[try rule["file"].text] = try FileEntry(manifest["files"][rule["file"].text]) }
        self.files = files
        try refuseUndrawable()
    }

    /// Hold every file that drawing needs against its hash; `counted` gets the bytes that were read, again and again.
    public func check(counted: (Int) -> Void = { _ in }) throws {
        for (name, entry) in files.sorted(by: { $0.key < $1.key }) {
            let found = try sha256(of: folder.appendingPathComponent(name), counted: counted)
            try checkHash(name, found: found, expected: entry.sha256)
        }
    }

    /// The test vectors, held against their hash.
    func vectors() throws -> [String: Tensor] {
        let name = try cases["vectors"].text
        let file = folder.appendingPathComponent(name)
        try checkHash(name, found: sha256(of: file), expected: FileEntry(manifest["files"][name]).sha256)
        return try readSafetensors(file)
    }

    private func refuseUndrawable() throws {
        let rows = guidance == nil ? 1 : 2
        guard !latent.isEmpty, student.inputs.allSatisfy({ $0.shape.first == rows }) else {
            let said = "The bundle's student takes another number of rows than \(rows), which this app gives it."
            throw Refused(.bundle, said, remedy: exportAgain)
        }
        let named = try sampler(of: manifest)
        guard samplers.contains(named) else {
            throw Refused(.bundle, "This app cannot draw with the sampler \(named).", remedy: exportAgain)
        }
        let found = try manifest["noise"]["generator"].text
        guard found == noiseGenerator else {
            let said = "The bundle begins pictures with noise of \(found)."
            throw Refused(.bundle, said, remedy: "Export it with --noise \(noiseGenerator).")
        }
        let read = Set(try rules.map { try $0["stream"].text }).union(absent)
        let streams = student.inputs.map(\.name).filter { $0.hasSuffix("_mask") }.map { String($0.dropLast(5)) }
        if let left = streams.first(where: { !read.contains($0) }) {
            throw Refused(.bundle, "No text encoder of the bundle makes the text stream \(left).", remedy: exportAgain)
        }
    }

    private static func component(_ parts: [Component], giving output: String) throws -> Component {
        guard let found = parts.first(where: { $0.outputs.contains { $0.name == output } }) else {
            throw Refused(.bundle, "The bundle has no component that gives a \(output); it cannot draw.", remedy: exportAgain)
        }
        return found
    }

    private static func read(_ folder: URL, _ name: String, _ expected: String?) throws -> JSON {
        guard let bytes = try? Data(contentsOf: folder.appendingPathComponent(name)) else {
            throw Refused(.bundle, "\(name) cannot be read.", remedy: installAgain)
        }
        if let expected { try checkHash(name, found: sha256(of: bytes), expected: expected) }
        return try JSON.parse(bytes, name: name)
    }
}
