"""Pure torch kernels: no ComfyUI, no I/O, no logging."""
