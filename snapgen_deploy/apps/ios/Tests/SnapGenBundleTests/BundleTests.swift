#if canImport(CoreGraphics)
import XCTest

@testable import SnapGenBundle

/// On a device, a Mac or a simulator with the runtime: the whole of conformance.json.
final class BundleTests: XCTestCase {
    func testEveryLinePasses() async throws {
        let model = try await SnapGen()
        let lines = try await model.selfTest()
        XCTAssertEqual(lines.filter { $0.passed != true }.map { "\($0.line): \($0.detail)" }, [])
        await model.release()
    }

    func testAPictureIsDrawnAndRecorded() async throws {
        let model = try await SnapGen(thrifty: true)
        await model.record.clear()
        let image = try await model.draw(Request("@PROMPT@", seed: 7))
        XCTAssertEqual(image.width, model.bundle.size.width)
        let lines = await model.record.lines()
        XCTAssertEqual(lines.count, 1)
    }
}
#endif
