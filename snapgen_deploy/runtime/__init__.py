"""Drawing with a bundle's ONNX files from Python, with numpy, onnxruntime, tokenizers and pillow alone."""
