"""Core AI: `.aimodel` assets for iOS 27 and macOS 27, through coreai-torch."""
