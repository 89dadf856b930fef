"""What a calibration found, as a picture and as text, with a verdict."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..calibration import report
from . import _calibrating
from ..host.pictures.report import picture


class GimbalQDriftReport(io.ComfyNode):
    NAME = "Q-Drift Report"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GimbalQDriftReport",
            display_name=cls.NAME,
            category="gimbal/qdrift",
            description="Shows how large a quantized model's error is, step by step and channel by channel, how stable "
            "the measurement is over the runs, and what to expect of correcting it.",
            inputs=[_calibrating.Statistics.Input("stats", tooltip="From Q-Drift Calibrate, Load or Merge.")],
            outputs=[io.Image.Output(display_name="report"), io.String.Output(display_name="text")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, stats) -> io.NodeOutput:
        image = picture(stats)
        return io.NodeOutput(image, report.text(stats), ui=ui.PreviewImage(image, cls=cls))


NODES = [GimbalQDriftReport]
