"""``drift`` of two ONNX files."""
