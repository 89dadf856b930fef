"""Nodes for the letters model that ships with the pack."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from . import conditioning, latent, sheet

SIDE = 16  # latent height and width of its 64x64 pictures


class GimbalDemoLetters(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GimbalDemoLetters",
            display_name="Try it: Letters",
            category="gimbal/try it",
            description="Prompt and empty latents for the small letters model that comes with Gimbal: one picture for each letter. "
            "Load gimbal_letters_fp16 with Load Diffusion Model; nothing needs to be downloaded.",
            inputs=[
                io.String.Input("text", default="GIMBAL", tooltip=f"Letters out of {conditioning.CLASSES}."),
                io.Int.Input("rows", default=1, min=1, max=64, tooltip="How often the text is repeated in the batch."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
                io.Latent.Output(display_name="latent"),
            ],
        )

    @classmethod
    def execute(cls, text: str, rows: int) -> io.NodeOutput:
        labels = conditioning.labels(text).repeat(rows)
        positive, negative = (conditioning.codes(which) for which in (labels, torch.full_like(labels, -1)))
        empty = torch.zeros(len(labels), latent.CHANNELS, SIDE, SIDE)
        conds = [[[context, {"pooled_output": pooled}]] for context, pooled in (positive, negative)]
        return io.NodeOutput(*conds, {"samples": empty})


class GimbalDemoDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GimbalDemoDecode",
            display_name="Try it: Decode",
            category="gimbal/try it",
            description="Turns latents of Gimbal's letters model into pictures, in place of VAE Decode.",
            inputs=[io.Latent.Input("latent")],
            outputs=[io.Image.Output(display_name="image")],
        )

    @classmethod
    def execute(cls, latent: dict) -> io.NodeOutput:
        return io.NodeOutput(decode_image(latent["samples"]))


def decode_image(samples: torch.Tensor) -> torch.Tensor:
    """ComfyUI's LATENT of an SD3 model (N, 16, h, w) to its IMAGE (N, H, W, 3) in [0, 1]."""
    import comfy.latent_formats

    pictures = latent.decode(comfy.latent_formats.SD3().process_in(samples))
    return pictures.movedim(1, -1) * 0.5 + 0.5


class GimbalDemoSheet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GimbalDemoSheet",
            display_name="Try it: Contact Sheet",
            category="gimbal/try it",
            description="Puts batches of pictures above one another in one picture, a labelled band for each.",
            inputs=[
                io.Image.Input("first", tooltip="The top band."),
                io.Image.Input("second", optional=True, tooltip="The next band, of pictures as large as the first's."),
                io.Image.Input("third", optional=True, tooltip="As second."),
                io.Image.Input("fourth", optional=True, tooltip="As second."),
                io.String.Input("title", default="", tooltip="Heading above all bands."),
                io.String.Input("labels", default="plain", multiline=True, tooltip="One line for each band."),
                io.Int.Input("columns", default=6, min=1, max=64, tooltip="Pictures in a row."),
            ],
            outputs=[io.Image.Output(display_name="sheet")],
        )

    @classmethod
    def execute(cls, first, title, labels, columns, second=None, third=None, fourth=None) -> io.NodeOutput:
        bands = [images for images in (first, second, third, fourth) if images is not None]
        names = labels.splitlines()
        if len(names) != len(bands):
            raise ValueError(
                f"Try it: Contact Sheet: labels has {len(names)} lines for {len(bands)} inputs; give one line for each."
            )
        return io.NodeOutput(sheet.contact_sheet(bands, names, title, columns))


NODES = [GimbalDemoLetters, GimbalDemoDecode, GimbalDemoSheet]
