"""Model files by the names, folders and addresses that ComfyUI's own templates use."""

from __future__ import annotations

from ..author import File

HUB = "https://huggingface.co"
WAN_FILES = f"{HUB}/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
QWEN_FILES = f"{HUB}/Comfy-Org/Qwen-Image_ComfyUI/resolve/main/split_files"
FLUX_ENCODERS = f"{HUB}/comfyanonymous/flux_text_encoders/resolve/main"

SD15, SDXL = "v1-5-pruned-emaonly-fp16.safetensors", "sd_xl_base_1.0.safetensors"
SD35 = "sd3.5_large_fp8_scaled.safetensors"
FLUX, FLUX_VAE = "flux1-dev.safetensors", "ae.safetensors"
CLIP_L, T5 = "clip_l.safetensors", "t5xxl_fp8_e4m3fn_scaled.safetensors"
FLUX_GGUF = "flux1-dev-Q4_K_S.gguf"
QWEN, QWEN_VAE = "qwen_image_fp8_e4m3fn.safetensors", "qwen_image_vae.safetensors"
QWEN_CLIP = "qwen_2.5_vl_7b_fp8_scaled.safetensors"
WAN, WAN_VAE = "wan2.1_t2v_1.3B_fp16.safetensors", "wan_2.1_vae.safetensors"
WAN_CLIP = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"

FILES = {
    SD15: File("checkpoints", f"{HUB}/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/{SD15}"),
    SDXL: File("checkpoints", f"{HUB}/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/{SDXL}"),
    SD35: File("checkpoints", f"{HUB}/Comfy-Org/stable-diffusion-3.5-fp8/resolve/main/{SD35}"),
    FLUX: File("diffusion_models", f"{HUB}/Comfy-Org/flux1-dev/resolve/main/{FLUX}"),
    FLUX_GGUF: File("diffusion_models", f"{HUB}/city96/FLUX.1-dev-gguf/resolve/main/{FLUX_GGUF}"),
    FLUX_VAE: File("vae", f"{HUB}/Comfy-Org/Lumina_Image_2.0_Repackaged/resolve/main/split_files/vae/{FLUX_VAE}"),
    CLIP_L: File("text_encoders", f"{FLUX_ENCODERS}/{CLIP_L}"),
    T5: File("text_encoders", f"{FLUX_ENCODERS}/{T5}"),
    QWEN: File("diffusion_models", f"{QWEN_FILES}/diffusion_models/{QWEN}"),
    QWEN_CLIP: File("text_encoders", f"{QWEN_FILES}/text_encoders/{QWEN_CLIP}"),
    QWEN_VAE: File("vae", f"{QWEN_FILES}/vae/{QWEN_VAE}"),
    WAN: File("diffusion_models", f"{WAN_FILES}/diffusion_models/{WAN}"),
    WAN_CLIP: File("text_encoders", f"{WAN_FILES}/text_encoders/{WAN_CLIP}"),
    WAN_VAE: File("vae", f"{WAN_FILES}/vae/{WAN_VAE}"),
}
