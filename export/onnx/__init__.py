"""ONNX: files for onnxruntime, and the diffusers layout through optimum."""
