"""Which tensors a quantized model's KL divergence comes from, and where bytes help most."""
