"""Quantized twins of a diffusion model's file, in the forms that ComfyUI and its GGUF loaders read. Needs torch and safetensors."""
