"""A user's own checkpoints on a user's own ComfyUI: paired pictures from workflows, and what they differ in."""
