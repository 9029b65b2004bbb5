"""``compare`` across frameworks: a source in Transformers or ONNX, and engines beside it."""
