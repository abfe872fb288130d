"""ONNX files for onnxruntime-web: browsers run them, and native onnxruntime does here."""
