#if canImport(ExecuTorch)
import ExecuTorch
import Foundation
import SnapGenCore

/// Runs `.pte` files with ExecuTorch, by the delegate that each file names. Weights are mapped, not copied.
actor ExecuTorchEngine: Engine {
    nonisolated let about: [(String, JSONText)] = [
        ("provider", .text(Shipped.target)), ("executorch", .text("@RUNTIME_VERSION@")),
    ]
    private let bundle: ModelBundle
    private let told: @Sendable (DrawingProgress) -> Void
    private var modules: [String: Module] = [:]

    init(_ bundle: ModelBundle, _ told: @escaping @Sendable (DrawingProgress) -> Void) {
        self.bundle = bundle
        self.told = told
    }

    func load(_ component: Component) throws {
        if modules[component.role] != nil { return }
        told(.loading(component.role, compiling: false))
        let file = bundle.folder.appendingPathComponent(component.path)
        let module = Module(filePath: file.path, loadMode: .mmap)
        do {
            try module.load(component.entry ?? "forward")
        } catch {
            throw refused("load", component, error)
        }
        modules[component.role] = module
    }

    func unload(_ component: Component) {
        modules[component.role] = nil
    }

    func run(_ component: Component, _ inputs: [String: SnapGenCore.Tensor]) throws -> [String: [Float]] {
        guard let module = modules[component.role] else { throw refused("run", component, nil) }
        let values = try component.inputs.map { port in try value(inputs[port.name], port) }
        do {
            let made: [Value] = try module.execute(component.entry ?? "forward", values)
            var found: [String: [Float]] = [:]
            for (port, one) in zip(component.outputs, made) {
                guard let tensor: ExecuTorch.Tensor<Float> = one.tensor() else { throw refused("run", component, nil) }
                found[port.name] = tensor.scalars()
            }
            return found
        } catch let error as Refused {
            throw error
        } catch {
            throw refused("run", component, error)
        }
    }

    private func value(_ tensor: SnapGenCore.Tensor?, _ port: ComponentPort) throws -> ValueConvertible {
        switch tensor {
        case .floats(let data, let shape): return ExecuTorch.Tensor<Float>(data, shape: shape)
        case .ints(let data, let shape): return ExecuTorch.Tensor<Int32>(data, shape: shape)
        case nil: throw Refused(.bundle, "Nothing gives the input \(port.name).", remedy: "Export the bundle again.")
        }
    }

    private func refused(_ task: String, _ component: Component, _ error: Error?) -> Refused {
        let why = error.map { ": \($0.localizedDescription)" } ?? "."
        return Refused(
            .runtime, "ExecuTorch cannot \(task) \(component.role) on this device\(why)",
            remedy: "Make room in memory and try again; else link the delegate that the file names."
        )
    }
}
#endif
