#if canImport(Darwin)
import Darwin
import Foundation
import SnapGenCore
import os

/// What this device has, and how it is.
enum Device {
    private static let roomy = 3 // parts of what this process may use that the model may take

    /// Whether one component at a time shall be held.
    static func isTight(modelBytes: Int) -> Bool {
        modelBytes > available() / roomy
    }

    static func state() -> DeviceState {
        let system = ProcessInfo.processInfo.operatingSystemVersionString
        return DeviceState(name: "\(model()), \(system)", memory: footprint(), thermal: thermal())
    }

    private static func available() -> Int {
        #if os(iOS)
        return Int(os_proc_available_memory())
        #else
        return Int(ProcessInfo.processInfo.physicalMemory)
        #endif
    }

    /// The bytes that the system counts for this process.
    private static func footprint() -> Int? {
        var info = task_vm_info_data_t()
        var count = mach_msg_type_number_t(MemoryLayout<task_vm_info_data_t>.size / MemoryLayout<integer_t>.size)
        let result = withUnsafeMutablePointer(to: &info) { pointer in
            pointer.withMemoryRebound(to: integer_t.self, capacity: Int(count)) { words in
                task_info(mach_task_self_, task_flavor_t(TASK_VM_INFO), words, &count)
            }
        }
        return result == KERN_SUCCESS ? Int(info.phys_footprint) : nil
    }

    private static func thermal() -> Thermal? {
        switch ProcessInfo.processInfo.thermalState {
        case .nominal: return .nominal
        case .fair: return .fair
        case .serious: return .serious
        case .critical: return .critical
        @unknown default: return nil
        }
    }

    private static func model() -> String {
        var system = utsname()
        uname(&system)
        return withUnsafeBytes(of: &system.machine) { bytes in
            String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
        }
    }
}
#endif
