import Foundation
import XCTest

@testable import SnapGenCore

/// Runs components that are made up here, and counts what is loaded.
private final class MadeUpEngine: Engine, @unchecked Sendable {
    let about: [(String, JSONText)] = [("provider", .text("none"))]
    private(set) var calls: [String] = []
    private(set) var held: Set<String> = []

    func load(_ component: Component) async throws { held.insert(component.role) }

    func unload(_ component: Component) async { held.remove(component.role) }

    func run(_ component: Component, _ inputs: [String: Tensor]) async throws -> [String: [Float]] {
        calls.append(component.role)
        let zeros = component.outputs.map { ($0.name, [Float](repeating: 0, count: $0.shape.reduce(1, *))) }
        return Dictionary(uniqueKeysWithValues: zeros)
    }
}

final class CoreTests: XCTestCase {
    /// The bundle of this package, or that of SNAPGEN_BUNDLE.
    private var folder: URL {
        if let path = ProcessInfo.processInfo.environment["SNAPGEN_BUNDLE"] { return URL(fileURLWithPath: path) }
        let tests = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        return tests.deletingLastPathComponent().appendingPathComponent("Sources/SnapGenBundle/Resources/bundle")
    }

    private func bundle() throws -> ModelBundle { try ModelBundle(folder: folder, target: "@TARGET@", sha256: nil) }

    func testFilesAreTheExportedOnes() throws {
        var bytes = 0
        let bundle = try self.bundle()
        try bundle.check { bytes += $0 }
        XCTAssertEqual(bytes, bundle.files.values.reduce(0) { $0 + $1.bytes })
        let other = String(repeating: "0", count: 64)
        XCTAssertThrowsError(try ModelBundle(folder: folder, target: "@TARGET@", sha256: other)) {
            XCTAssertEqual(($0 as? Refused)?.reason, .hash)
        }
    }

    func testEveryLineThatNeedsNoRuntimePasses() async throws {
        let bundle = try self.bundle()
        let lines = try await conformance(bundle, bundle.readers(), nil)
        XCTAssertEqual(lines.filter { $0.passed == false }.map { "\($0.line): \($0.detail)" }, [])
        XCTAssertTrue(lines.contains { $0.line == "noise" && $0.passed == true })
    }

    func testNoiseHasTheBitsOfTheDocumentation() {
        let bits = noise(seed: 42, count: 4096).map(\.bitPattern)
        XCTAssertEqual(Array(bits.prefix(4)), [0xbf785e5a, 0x3e46acec, 0xbf9e28cd, 0x3ff6433e])
        XCTAssertEqual(bits.last, 0x3d40aedb)
        XCTAssertEqual(philox(block: 0, key: 0), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8])
    }

    func testHashesOfKnownTexts() {
        XCTAssertEqual(sha256(of: Data()), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
        let million = Data(repeating: UInt8(ascii: "a"), count: 1_000_000)
        XCTAssertEqual(sha256(of: million), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0")
    }

    func testHalvesGoToEvenNumbers() throws {
        XCTAssertEqual(try pixels(of: [0, 1, -2], height: 1, width: 1), [128, 255, 0, 255]) // 0 becomes 127.5
        XCTAssertThrowsError(try pixels(of: [.nan, 0, 0], height: 1, width: 1))
    }

    func testOneComponentAtATime() async throws {
        let engine = MadeUpEngine()
        let pipeline = try Pipeline(self.bundle(), engine: engine, thrifty: true)
        let bundle = pipeline.bundle
        guard let words = try bundle.cases["tokenizers"].items.first?["cases"].items.first?["text"].text else {
            throw XCTSkip("no prompt is read here")
        }
        let drawn = try await pipeline.draw(Request(words, seed: 1))
        XCTAssertEqual(drawn.times.steps.count, bundle.stepCount)
        XCTAssertEqual(engine.calls.filter { $0 == bundle.student.role }.count, bundle.stepCount)
        XCTAssertTrue(engine.held.isEmpty)
    }

    func testACancelledTaskDrawsNothing() async throws {
        let engine = MadeUpEngine()
        let pipeline = try Pipeline(self.bundle(), engine: engine)
        let task = Task { () -> Refused.Reason? in
            try? await Task.sleep(nanoseconds: 1_000_000_000)
            do {
                _ = try await pipeline.draw(Request("a", seed: 1))
                return nil
            } catch {
                return (error as? Refused)?.reason
            }
        }
        task.cancel()
        let reason = await task.value
        XCTAssertEqual(reason, .cancelled)
        XCTAssertEqual(engine.calls, [])
    }

    func testTheRecordKeepsTheLastLines() async throws {
        let file = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        let recorder = Recorder(file, kept: 2)
        let device = DeviceState(name: "a \"phone\"", memory: 7, thermal: .fair)
        let recording = Recording(try self.bundle(), MadeUpEngine())
        try await recorder.add("{}")
        try await recorder.add(recording.drawn(Request("a", seed: 7), Date(timeIntervalSince1970: 0), Times(), device))
        let failure = Refused(.unknown, "", remedy: "")
        try await recorder.add(recording.failed(Request("a", seed: 8), Date(), failure, device))
        let lines = await recorder.lines()
        XCTAssertEqual(lines.count, 2)
        let first = try JSON.parse(Data(lines[0].utf8), name: "line")
        XCTAssertEqual(try first["time"].text, "1970-01-01T00:00:00.000Z")
        XCTAssertEqual(try first["memory"]["process"].whole, 7)
        XCTAssertNil(try first.find("prompt"))
        XCTAssertEqual(try JSON.parse(Data(lines[1].utf8), name: "line")["why"].text, "unknown")
        await recorder.clear()
    }
}
