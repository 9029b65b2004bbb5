"""ONNX graphs and ONNX Runtime: the only room that knows onnx and onnxruntime."""
