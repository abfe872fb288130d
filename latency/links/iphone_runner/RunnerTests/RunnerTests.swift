// Times whole pictures on the phone: text encoder, every step of the student, decoder, as `Bench/plan.json` lists them.
// Each test writes one JSON object, as an attachment of the test and as a line on standard output. Times are milliseconds
// around MLModel.prediction; "e2e" is around all calls of a picture. Every call of a component takes the same inputs.

import CoreML
import UIKit
import XCTest

private struct Plan: Decodable {
    struct Input: Decodable {
        let name: String
        let file: String
        let dtype: String
        let shape: [Int]
    }
    struct Component: Decodable {
        let role: String
        let model: String
        let calls: Int
        let inputs: [Input]
    }
    let computeUnits: String
    let components: [Component]
}

private struct Loaded {
    let role: String
    let calls: Int
    let model: MLModel
    let inputs: MLFeatureProvider
}

private enum Failure: Error, CustomStringConvertible {
    case wrong(String)
    var description: String {
        switch self { case .wrong(let what): return what }
    }
}

final class RunnerTests: XCTestCase {
    private let folder = Bundle.main.bundleURL.appendingPathComponent("Bench")

    /// The phone's condition now.
    @MainActor func testState() throws {
        try report(["before": state(), "after": state()])
    }

    /// Loads all components twice in this process.
    @MainActor func testLoad() throws {
        let before = state()
        let first = try milliseconds { _ = try loadAll() }.elapsed
        let again = try milliseconds { _ = try loadAll() }.elapsed
        try report(["before": before, "after": state(), "load_ms": [first, again]])
    }

    /// Warm-ups and timed pictures, SNAPGEN_WARMUPS and SNAPGEN_QUERIES of them.
    @MainActor func testPictures() throws {
        let before = state()
        let samples = try draw(loadAll(), warmups: count("SNAPGEN_WARMUPS"), queries: count("SNAPGEN_QUERIES"))
        try report(["before": before, "after": state(), "samples": samples])
    }

    /// Two pictures, and the largest footprint that the process ever had.
    @MainActor func testMemory() throws {
        let before = state()
        _ = try draw(loadAll(), warmups: 0, queries: 2)
        try report(["before": before, "after": state(), "peak_bytes": try peakFootprint()])
    }

    private func draw(_ components: [Loaded], warmups: Int, queries: Int) throws -> [String: [Double]] {
        var samples: [String: [Double]] = [:]
        for picture in 0..<(warmups + queries) {
            var times: [String: [Double]] = [:]
            let whole = try milliseconds { () throws -> Void in
                for component in components {
                    for _ in 0..<component.calls {
                        let call = try autoreleasepool {
                            try milliseconds { try component.model.prediction(from: component.inputs) }
                        }
                        times[component.role, default: []].append(call.elapsed)
                    }
                }
            }
            if picture >= warmups {
                samples["e2e", default: []].append(whole.elapsed)
                for (role, values) in times { samples[role, default: []] += values }
            }
        }
        return samples
    }

    private func loadAll() throws -> [Loaded] {
        let data = try Data(contentsOf: folder.appendingPathComponent("plan.json"))
        let plan = try JSONDecoder().decode(Plan.self, from: data)
        let configuration = MLModelConfiguration()
        configuration.computeUnits = try units(plan.computeUnits)
        return try plan.components.map { component in
            let url = folder.appendingPathComponent(component.model)
            let model = try MLModel(contentsOf: url, configuration: configuration)
            var features: [String: MLFeatureValue] = [:]
            for input in component.inputs { features[input.name] = MLFeatureValue(multiArray: try array(input)) }
            let provider = try MLDictionaryFeatureProvider(dictionary: features)
            return Loaded(role: component.role, calls: component.calls, model: model, inputs: provider)
        }
    }

    private func array(_ input: Plan.Input) throws -> MLMultiArray {
        let data = try Data(contentsOf: folder.appendingPathComponent(input.file))
        let type: MLMultiArrayDataType = input.dtype == "int32" ? .int32 : .float32
        let array = try MLMultiArray(shape: input.shape.map { NSNumber(value: $0) }, dataType: type)
        guard data.count == 4 * array.count else {
            throw Failure.wrong("\(input.file) has \(data.count) bytes, expected \(4 * array.count)")
        }
        array.withUnsafeMutableBytes { pointer, _ in pointer.copyBytes(from: data) }
        return array
    }

    private func units(_ name: String) throws -> MLComputeUnits {
        switch name {
        case "all": return .all
        case "cpu_only": return .cpuOnly
        case "cpu_and_gpu": return .cpuAndGPU
        case "cpu_and_ne": return .cpuAndNeuralEngine
        default: throw Failure.wrong("no compute units named \(name)")
        }
    }

    private func count(_ name: String) throws -> Int {
        guard let text = ProcessInfo.processInfo.environment[name], let value = Int(text) else {
            throw Failure.wrong("\(name) is not set to a number")
        }
        return value
    }

    private func milliseconds<T>(_ work: () throws -> T) rethrows -> (elapsed: Double, value: T) {
        let start = clock_gettime_nsec_np(CLOCK_UPTIME_RAW)
        let value = try work()
        return (Double(clock_gettime_nsec_np(CLOCK_UPTIME_RAW) - start) / 1e6, value)
    }

    @MainActor private func state() -> [String: Any] {
        let process = ProcessInfo.processInfo
        UIDevice.current.isBatteryMonitoringEnabled = true
        let level = UIDevice.current.batteryLevel // 0 to 1, or -1 where unknown
        return [
            "thermal": process.thermalState.rawValue, // 0 nominal, 1 fair, 2 serious, 3 critical
            "low_power": process.isLowPowerModeEnabled,
            "battery_percent": level < 0 ? NSNull() as Any : (Double(level) * 100) as Any,
        ]
    }

    /// The kernel's own record of the largest phys_footprint, which is what memory limits are checked against.
    private func peakFootprint() throws -> Int64 {
        var info = task_vm_info_data_t()
        var count = mach_msg_type_number_t(MemoryLayout<task_vm_info_data_t>.size / MemoryLayout<integer_t>.size)
        let status = withUnsafeMutablePointer(to: &info) {
            $0.withMemoryRebound(to: integer_t.self, capacity: Int(count)) {
                task_info(mach_task_self_, task_flavor_t(TASK_VM_INFO), $0, &count)
            }
        }
        guard status == KERN_SUCCESS else { throw Failure.wrong("task_info ended with status \(status)") }
        return info.ledger_phys_footprint_peak
    }

    private func report(_ result: [String: Any]) throws {
        let data = try JSONSerialization.data(withJSONObject: result, options: [.sortedKeys])
        let attachment = XCTAttachment(data: data, uniformTypeIdentifier: "public.json")
        attachment.name = "snapgen-result"
        attachment.lifetime = .keepAlways
        add(attachment)
        print("SNAPGEN-RESULT " + String(decoding: data, as: UTF8.self))
    }
}
