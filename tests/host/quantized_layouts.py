"""What ComfyUI calls the formats of `dev.py quantize` that its mixed-precision layers read."""

ALGORITHMS = {
    "fp8_mixed": "float8_e4m3fn",
    "nvfp4": "nvfp4",
    "mxfp8": "mxfp8",
    "int8": "int8_tensorwise",
    "convrot_w4a4": "convrot_w4a4",
    "asym_w4a8": "asym_w4a8_int8",
}
