"""Where the letters model lies, so that ComfyUI's own Load Diffusion Model finds it."""

from __future__ import annotations

from pathlib import Path

FILE = "gimbal_letters_fp16.safetensors"
FOLDER = Path(__file__).resolve().parent.parent / "models"


def offer() -> None:
    """Add the pack's folder of models to those that ComfyUI searches. Nothing is copied into the user's."""
    import folder_paths

    folder_paths.add_model_folder_path("diffusion_models", str(FOLDER))
