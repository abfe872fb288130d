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
    dependencies: [.package(url: "https://github.com/pytorch/executorch.git", branch: "swiftpm-@RUNTIME_VERSION@")],
    targets: [
        .target(name: "SnapGenCore"),
        .target(
            name: "SnapGenBundle",
            dependencies: [
                "SnapGenCore",
                .product(name: "executorch", package: "executorch"),
                .product(name: "backend_@DELEGATE@", package: "executorch"),
                .product(name: "kernels_optimized", package: "executorch"),
                .product(name: "kernels_quantized", package: "executorch"),
            ],
            resources: [.copy("Resources/bundle")]
        ),
        .testTarget(name: "SnapGenCoreTests", dependencies: ["SnapGenCore"]),
        .testTarget(name: "SnapGenBundleTests", dependencies: ["SnapGenBundle"]),
    ]
)
