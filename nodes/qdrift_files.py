"""Q-Drift statistics from files, several calibrations joined into one, and what they say as a picture and as text."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io, ui

from ..calibration import files, report
from ..calibration.statistics import QDriftStatistics
from ..calibration.text import printable
from ..calibration.verdict import verdict
from ..host import output_tracking, qdrift_folder
from ..host.pictures.card import card
from ..host.pictures.report import picture
from . import _inputs
from ._inputs import QUANTIZED, Statistics

logger = logging.getLogger(__name__)


class GimbalQDriftLoad(io.ComfyNode):
    NAME = "Q-Drift Load"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _inputs.schema(
            node_id="GimbalQDriftLoad",
            display_name=cls.NAME,
            category="gimbal/qdrift",
            description="Loads the statistics of a calibration from models/qdrift, for Quantization Fix. Every value is checked "
            "before use.",
            search=("calibration", *QUANTIZED),
            inputs=[
                io.Combo.Input(
                    "file",
                    options=qdrift_folder.statistics_choices(),
                    tooltip="A file in models/qdrift, as Q-Drift Calibrate wrote it. Press R after a calibration to see it.",
                )
            ],
            outputs=[Statistics.Output(display_name="stats")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None) -> bool | str:
        """In the place of ComfyUI's own look at the list, which knows no remedy. None: the name comes from another node."""
        try:
            return file is None or bool(qdrift_folder.statistics_path(cls.NAME, file))
        except ValueError as error:
            return str(error)

    @classmethod
    def fingerprint_inputs(cls, file: str) -> str:
        try:
            return files.digest(qdrift_folder.statistics_path(cls.NAME, file))
        except (ValueError, OSError):
            return "missing"  # said by execute

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        found = QDriftStatistics.load(qdrift_folder.statistics_path(cls.NAME, file))
        _inputs.messages(cls).add(verdict(found).line)
        return io.NodeOutput(found)


class GimbalQDriftMerge(io.ComfyNode):
    NAME = "Q-Drift Merge"

    @classmethod
    def define_schema(cls) -> io.Schema:
        part = Statistics.Input
        tooltip = "Statistics of the same models, schedule and cfg, from other seeds or prompts."
        return _inputs.schema(
            node_id="GimbalQDriftMerge",
            display_name=cls.NAME,
            category="gimbal/qdrift",
            description="Joins calibrations of one setting, run with other seeds or prompts: the error's moments, exactly; the layer "
            "correction as the mean over all runs, with its advice. Moment matching is left out.",
            inputs=[
                part("first", tooltip=tooltip),
                part("second", tooltip=tooltip),
                part("third", optional=True, tooltip=tooltip),
                part("fourth", optional=True, tooltip=tooltip),
                io.String.Input(
                    "filename",
                    default="",
                    tooltip="Name in models/qdrift to write to; a number is added to a name that is taken. "
                    "Empty writes nothing.",
                ),
            ],
            outputs=[
                Statistics.Output(display_name="stats"),
                io.String.Output(display_name="path"),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **widgets: Any) -> int:
        return output_tracking.deleted_count(cls.NAME, widgets)

    @classmethod
    def execute(cls, first, second, filename: str, third=None, fourth=None) -> io.NodeOutput:
        parts = [part for part in (first, second, third, fourth) if part is not None]
        try:
            merged = QDriftStatistics.merge(parts)
        except ValueError as error:
            raise ValueError(f"{cls.NAME}: {str(error).removeprefix('QDriftStatistics.merge: ')}") from error
        if not filename.strip():
            return io.NodeOutput(merged, "")
        before = output_tracking.deleted_count(cls.NAME, {"filename": filename})
        path = qdrift_folder.save(merged, filename)
        output_tracking.note(cls.NAME, {"filename": filename}, path, before)
        logger.info(
            "%s: wrote %s, %d runs of %d calibrations.",
            cls.NAME,
            printable(path, None),
            merged.provenance.runs,
            len(parts),
        )
        return io.NodeOutput(merged, str(path))


class GimbalQDriftReport(io.ComfyNode):
    NAME = "Q-Drift Report"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _inputs.schema(
            node_id="GimbalQDriftReport",
            display_name=cls.NAME,
            category="gimbal/qdrift",
            description="Says of a quantized model (GGUF, fp8, nvfp4, ...) whether a correction helps, by how much, and what to do "
            "next; and plots its error step by step and channel by channel. For colour shift and quality loss.",
            search=("verdict", *QUANTIZED),
            inputs=[Statistics.Input("stats", tooltip="From Q-Drift Calibrate, Load or Merge.")],
            outputs=[
                io.Image.Output(display_name="report", tooltip="The verdict, large enough to read on a node."),
                io.String.Output(display_name="text", tooltip="The verdict first, then everything that was measured."),
                io.Image.Output(display_name="plots"),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, stats) -> io.NodeOutput:
        found = verdict(stats)
        image = card(found, qdrift_folder.saved_as(stats))
        words = "\n".join([f"{found.line} {found.next_step}", *found.seen, found.cost]).rstrip()
        words = f"{words}\n\n{report.text(stats)}"
        return io.NodeOutput(image, words, picture(stats), ui=ui.PreviewImage(image, cls=cls))


NODES = [GimbalQDriftLoad, GimbalQDriftMerge, GimbalQDriftReport]
