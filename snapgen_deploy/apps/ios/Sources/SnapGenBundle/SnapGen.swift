#if canImport(CoreGraphics)
import CoreGraphics
import Foundation
import SnapGenCore

@_exported import SnapGenCore

/// The model of this package: it is opened once, and draws one picture after the other.
///
///     let model = try await SnapGen { progress in … }
///     let picture = try await model.draw(Request("a red ring", seed: 7)) { progress in … }
///
/// Every fault that a user may see is a `Refused`: what is wrong, and what to do. Cancelling the task gives a picture up.
public actor SnapGen {
    public nonisolated let bundle: ModelBundle
    /// A line for each picture, in a file of this app; nothing is sent.
    public nonisolated let record: Recorder
    private let pipeline: Pipeline
    private let recording: Recording

    /// Check the bundle's files, and load them where there is memory for all of them.
    ///
    /// - Parameters:
    ///   - thrifty: Hold one component at a time; nil: where the files take more than a third of what this process may use.
    ///   - progress: Told of checks and of loading; `compiling` is the long first time.
    public init(thrifty: Bool? = nil, progress: @escaping @Sendable (DrawingProgress) -> Void = { _ in }) async throws {
        let bundle = try ModelBundle(folder: Shipped.folder, target: Shipped.target, sha256: Shipped.manifest)
        let total = bundle.files.values.reduce(0) { $0 + $1.bytes }
        var done = 0
        try bundle.check { count in
            done += count
            progress(.checking(Double(done) / Double(max(total, 1))))
        }
        let engine = Shipped.engine(bundle, progress)
        let files = FileManager.default
        let support = try files.url(for: .applicationSupportDirectory, in: .userDomainMask, appropriateFor: nil, create: true)
        self.bundle = bundle
        record = Recorder(support.appendingPathComponent("pictures.jsonl"))
        recording = Recording(bundle, engine)
        pipeline = try Pipeline(bundle, engine: engine, thrifty: thrifty ?? Device.isTight(modelBytes: total))
        try await pipeline.load()
    }

    /// Draw a picture. Throws `Refused`.
    public func draw(
        _ request: Request, progress: @escaping @Sendable (DrawingProgress) -> Void = { _ in }
    ) async throws -> CGImage {
        let begun = Date()
        do {
            let drawn = try await pipeline.draw(request, progress: progress)
            let image = try picture(drawn.picture)
            try? await record.add(recording.drawn(request, begun, drawn.times, Device.state()))
            return image
        } catch {
            try? await record.add(recording.failed(request, begun, error, Device.state()))
            throw error
        }
    }

    /// Run conformance.json on this device.
    public func selfTest() async throws -> [Line] {
        try await conformance(bundle, pipeline.readers, pipeline)
    }

    /// Give the model's memory back, when the app goes to the background or memory is short; the next picture loads it again.
    public func release() async {
        await pipeline.unload()
    }

    private func picture(_ values: [Float]) throws -> CGImage {
        let (height, width) = bundle.size
        let bytes = Data(try pixels(of: values, height: height, width: width))
        guard let provider = CGDataProvider(data: bytes as CFData), let space = CGColorSpace(name: CGColorSpace.sRGB),
              let image = CGImage(
                  width: width, height: height, bitsPerComponent: 8, bitsPerPixel: 32, bytesPerRow: 4 * width, space: space,
                  bitmapInfo: CGBitmapInfo(rawValue: CGImageAlphaInfo.noneSkipLast.rawValue), provider: provider,
                  decode: nil, shouldInterpolate: false, intent: .defaultIntent
              )
        else {
            throw Refused(.runtime, "The picture cannot be made.", remedy: "Make room in memory, and try again.")
        }
        return image
    }
}
#endif
