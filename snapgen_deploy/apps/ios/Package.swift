// swift-tools-version:5.9
import PackageDescription

// SnapGenCore needs Foundation alone, and builds on Linux, too. SnapGenBundle has the bundle's files and calls the runtime.
let package = Package(
    name: "SnapGenBundle",
    platforms: [.iOS("@IOS@"), .macOS("@MACOS@")],
    products: [
        .library(name: "SnapGenBundle", targets: ["SnapGenBundle"]),
        .library(name: "SnapGenCore", targets: ["SnapGenCore"]),
    ],
    targets: [
        .target(name: "SnapGenCore"),
        .target(
            name: "SnapGenBundle",
            dependencies: ["SnapGenCore"],
            resources: [.copy("Resources/bundle")]
        ),
        .testTarget(name: "SnapGenCoreTests", dependencies: ["SnapGenCore"]),
        .testTarget(name: "SnapGenBundleTests", dependencies: ["SnapGenBundle"]),
    ]
)
