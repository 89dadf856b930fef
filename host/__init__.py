"""What knows ComfyUI and is no node: sampling runs, corrections, calibration runs, simulated layers, pictures."""
