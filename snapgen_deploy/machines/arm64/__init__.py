"""Arm's 64-bit processors without a phone: the aarch64 build of onnxruntime under qemu-user."""
