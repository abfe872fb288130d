#if canImport(CoreAI)
import CoreAI
import Foundation
import SnapGenCore

/// Runs Core AI assets, on iOS 27 and macOS 27. The system specialises an asset for the device when it is first loaded, and
/// keeps what it made.
@available(iOS 27, macOS 27, *)
actor CoreAIEngine: Engine {
    nonisolated let about: [(String, JSONText)] = [
        ("provider", .text("coreai")), ("system", .text(ProcessInfo.processInfo.operatingSystemVersionString)),
    ]
    private let bundle: ModelBundle
    private let told: @Sendable (DrawingProgress) -> Void
    private var functions: [String: InferenceFunction] = [:]
    private var known: Set<String> = [] // components that were loaded once in this process

    init(_ bundle: ModelBundle, _ told: @escaping @Sendable (DrawingProgress) -> Void) {
        self.bundle = bundle
        self.told = told
    }

    func load(_ component: Component) async throws {
        if functions[component.role] != nil { return }
        told(.loading(component.role, compiling: known.insert(component.role).inserted))
        do {
            let model = try await AIModel(contentsOf: bundle.folder.appendingPathComponent(component.path))
            guard let function = try model.loadFunction(named: component.entry ?? "main") else {
                throw refused("load", component, nil)
            }
            functions[component.role] = function
        } catch let error as Refused {
            throw error
        } catch {
            throw refused("load", component, error)
        }
    }

    func unload(_ component: Component) {
        functions[component.role] = nil
    }

    func run(_ component: Component, _ inputs: [String: Tensor]) async throws -> [String: [Float]] {
        guard let function = functions[component.role] else { throw refused("run", component, nil) }
        var arrays: [String: NDArray] = [:]
        for port in component.inputs {
            switch inputs[port.name] {
            case .floats(let data, let shape): arrays[port.name] = NDArray(scalars: data, shape: shape)
            case .ints(let data, let shape): arrays[port.name] = NDArray(scalars: data, shape: shape)
            case nil: throw Refused(.bundle, "Nothing gives the input \(port.name).", remedy: "Export the bundle again.")
            }
        }
        do {
            var outputs = try await function.run(inputs: arrays)
            var found: [String: [Float]] = [:]
            for port in component.outputs {
                guard let array = outputs.remove(port.name)?.ndArray else { throw refused("run", component, nil) }
                found[port.name] = scalars(of: array)
            }
            return found
        } catch let error as Refused {
            throw error
        } catch {
            throw refused("run", component, error)
        }
    }

    /// The numbers of an array in C order, whatever its strides are.
    private func scalars(of array: NDArray) -> [Float] {
        var found: [Float] = []
        array.view(as: Float.self).withUnsafePointer { pointer, shape, strides in
            let axes = shape.count
            let count = (0..<axes).reduce(1) { $0 * shape[$1] }
            found.reserveCapacity(count)
            for number in 0..<count {
                var left = number
                var offset = 0
                for axis in stride(from: axes - 1, through: 0, by: -1) {
                    offset += left % shape[axis] * strides[axis]
                    left /= shape[axis]
                }
                found.append(pointer[offset])
            }
        }
        return found
    }

    private func refused(_ task: String, _ component: Component, _ error: Error?) -> Refused {
        let why = error.map { ": \($0.localizedDescription)" } ?? "."
        return Refused(
            .runtime, "Core AI cannot \(task) \(component.role) on this device\(why)",
            remedy: "Make room in memory and try again; else use the bundle's files for Core ML."
        )
    }
}
#endif
