#if canImport(CoreML)
import CoreML
import Foundation
import SnapGenCore

/// Runs Core ML packages.
///
/// A package is compiled when it is first loaded, which takes longest, and the compiled model is kept among the app's caches;
/// the system may delete it, and it is compiled again then. The system specialises it for the device besides.
actor CoreMLEngine: Engine {
    nonisolated let about: [(String, JSONText)] = [
        ("provider", .text("coreml")), ("system", .text(ProcessInfo.processInfo.operatingSystemVersionString)),
    ]
    private let bundle: ModelBundle
    private let told: @Sendable (DrawingProgress) -> Void
    private var models: [String: MLModel] = [:]

    init(_ bundle: ModelBundle, _ told: @escaping @Sendable (DrawingProgress) -> Void) {
        self.bundle = bundle
        self.told = told
    }

    func load(_ component: Component) async throws {
        if models[component.role] != nil { return }
        let compiled = try compiledPlace(component)
        let fresh = !FileManager.default.fileExists(atPath: compiled.path)
        told(.loading(component.role, compiling: fresh))
        do {
            if fresh {
                let made = try await MLModel.compileModel(at: bundle.folder.appendingPathComponent(component.path))
                try FileManager.default.moveItem(at: made, to: compiled)
            }
            let configuration = MLModelConfiguration()
            configuration.computeUnits = .all
            if let entry = component.entry {
                guard #available(iOS 18, macOS 15, *) else {
                    let said = "\(component.role) holds several functions."
                    throw Refused(.runtime, said, remedy: "It needs iOS 18 or macOS 15.")
                }
                configuration.functionName = entry
            }
            models[component.role] = try await MLModel.load(contentsOf: compiled, configuration: configuration)
        } catch let error as Refused {
            throw error
        } catch {
            try? FileManager.default.removeItem(at: compiled)
            throw refused("load", component, error)
        }
    }

    func unload(_ component: Component) {
        models[component.role] = nil
    }

    func run(_ component: Component, _ inputs: [String: Tensor]) throws -> [String: [Float]] {
        guard let model = models[component.role] else { throw refused("run", component, nil) }
        do {
            let features = try component.inputs.map { port in (port.name, try feature(inputs[port.name], port)) }
            let provider = try MLDictionaryFeatureProvider(dictionary: Dictionary(uniqueKeysWithValues: features))
            let made = try model.prediction(from: provider)
            var found: [String: [Float]] = [:]
            for port in component.outputs {
                guard let array = made.featureValue(for: port.name)?.shapedArrayValue(of: Float.self) else {
                    throw refused("run", component, nil)
                }
                found[port.name] = array.scalars
            }
            return found
        } catch let error as Refused {
            throw error
        } catch {
            throw refused("run", component, error)
        }
    }

    private func feature(_ tensor: Tensor?, _ port: ComponentPort) throws -> MLFeatureValue {
        switch tensor {
        case .floats(let data, let shape): return MLFeatureValue(shapedArray: MLShapedArray<Float>(scalars: data, shape: shape))
        case .ints(let data, let shape): return MLFeatureValue(shapedArray: MLShapedArray<Int32>(scalars: data, shape: shape))
        case nil: throw Refused(.bundle, "Nothing gives the input \(port.name).", remedy: "Export the bundle again.")
        }
    }

    /// Where the compiled model of this bundle lies; other bundles have other folders.
    private func compiledPlace(_ component: Component) throws -> URL {
        let caches = try FileManager.default.url(for: .cachesDirectory, in: .userDomainMask, appropriateFor: nil, create: true)
        let folder = caches.appendingPathComponent("snapgen-\(Shipped.manifest.prefix(16))")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        return folder.appendingPathComponent("\(component.role).mlmodelc")
    }

    private func refused(_ task: String, _ component: Component, _ error: Error?) -> Refused {
        let why = error.map { ": \($0.localizedDescription)" } ?? "."
        return Refused(
            .runtime, "Core ML cannot \(task) \(component.role) on this device\(why)",
            remedy: "Make room in storage and memory, and try again; else export for the system of this device."
        )
    }
}
#endif
