"""ONNX files for NVIDIA GPUs: onnxruntime's CUDA and TensorRT providers run them."""
