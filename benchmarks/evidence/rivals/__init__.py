"""Published corrections of quantization error, written anew from their papers, each as the benchmark's calibrations use it.

`fit(plan, full, quantized, x)` measures paired runs that begin at x (N, C, h, w), and gives what samples the quantized
model: (denoise, x) -> latents.
"""
