"""Qualcomm NPUs: context binaries of onnxruntime-qnn, compiled and emulated on this host."""
