"""The life of one sampling run: what nodes add to it, what it remembers, and how all that hooks into ComfyUI."""
