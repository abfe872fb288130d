#if canImport(CoreGraphics)
import Foundation
import SnapGenCore

/// What this package was written for.
enum Shipped {
    static let target = "@TARGET@"
    /// SHA-256 of the bundle's manifest.json, which has those of all other files.
    static let manifest = "@SHA256@"
    /// The bundle's files, as resources of this package.
    static var folder: URL { Bundle.module.bundleURL.appendingPathComponent("bundle") }

    static func engine(_ bundle: ModelBundle, _ told: @escaping @Sendable (DrawingProgress) -> Void) -> Engine {
        @ENGINE@(bundle, told)
    }
}
#endif
