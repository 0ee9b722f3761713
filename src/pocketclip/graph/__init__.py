"""ONNX graphs of towers, built from a configuration and named arrays, without torch."""
