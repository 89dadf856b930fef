"""What `dev.py` is made of: the pinned environment, a ComfyUI to run in it, and a server process. Standard library only."""
