"""Q-Drift statistics: moments of the quantization error, their file, what they say. No ComfyUI."""
