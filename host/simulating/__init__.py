"""Linear layers that compute as if they were quantized."""
