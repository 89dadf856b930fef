"""Q-Drift calibration: how far a quantized model strays from full precision, measured on the same states."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..host import identity, output_tracking
from ..host.calibrating.calibration import Calibration
from ..host.calibrating.finish import finish
from ..host.calibrating.layer_means import place_widths
from ..host.calibrating.layers import worthwhile
from ..host.calibrating.model_pair import ModelPair, checked, full_key
from ..host.calibrating.recording import Progress, store_for
from ..host.calibrating.schedule import consecutive_seeds, make_runs, make_schedule
from ..host.calibrating.self_reference import REFERENCE, self_reference
from ..host.calibrating.task import Settings
from . import _calibrating, _inputs
from ._inputs import QUANTIZED, name_of, unique_id

MODES = ("two passes", "interleaved")


def _mode() -> io.Input:
    return io.Combo.Input(
        "mode",
        options=list(MODES),
        default=MODES[0],
        tooltip="two passes: one model on the device at a time. interleaved: the models by turns, run by run; "
        "if both fit into memory. The result is the same.",
    )


class GimbalQDriftCalibrate(io.ComfyNode):
    NAME = "Q-Drift Calibrate"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _inputs.schema(
            node_id="GimbalQDriftCalibrate",
            display_name=cls.NAME,
            category="gimbal/qdrift",
            search=("calibration", *QUANTIZED),
            description="Measures the error of a quantized model (GGUF, fp8, nvfp4, ...): samples with full precision, asks the "
            "quantized model at the same states, matches its moments, tries the corrections on held-out runs, and writes what "
            "Quantization Fix needs to models/qdrift. Resumes after a cancel.",
            inputs=[
                _calibrating.full_model(optional=True),
                _calibrating.quantized_model(),
                *_calibrating.schedule(),
                *_calibrating.prompts(),
                *_inputs.advanced(
                    [_calibrating.correction(), _mode(), _calibrating.trim(), _calibrating.filename("calibration")]
                ),
                *_inputs.advanced([_calibrating.budget()]),
            ],
            outputs=_calibrating.outputs(),
            hidden=[io.Hidden.prompt],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **widgets: Any) -> int:
        return output_tracking.deleted_count(cls.NAME, widgets)

    @classmethod
    def execute(
        cls, quantized_model, latent, cfg, sampler_name, scheduler, steps, runs, first_seed, held_out, prompts,
        negative_prompt, correction, mode, trim, filename, full_model=None, sigmas=None, positive=None, negative=None,
        clip=None, budget=0.0,
    ) -> io.NodeOutput:  # fmt: skip
        widgets = {"cfg": cfg, "sampler_name": sampler_name, "scheduler": scheduler, "steps": steps, "runs": runs}
        widgets |= {"first_seed": first_seed, "held_out": held_out, "prompts": prompts, "mode": mode, "trim": trim}
        widgets |= {
            "negative_prompt": negative_prompt,
            "correction": correction,
            "filename": filename,
            "budget": budget,
        }
        before = output_tracking.deleted_count(cls.NAME, widgets)
        quantized = checked(cls.NAME, "quantized_model", quantized_model)
        reference, names = "", [name_of(cls, quantized_model, "quantized_model")] * 2
        if full_model is None:
            full, full_model = quantized, self_reference(cls.NAME, "quantized_model", quantized_model)
            names[0], reference = f"{names[1]} with unrounded activations", REFERENCE
        else:
            full, names[0] = checked(cls.NAME, "full_model", full_model), name_of(cls, full_model, "full_model")
        full.check_same(cls.NAME, "full_model", quantized, "quantized_model")
        schedule = make_schedule(cls.NAME, full_model, full, latent, cfg, sampler_name, scheduler, steps, sigmas)
        digests = [identity.weights_digest(model) for model in (full_model, quantized_model)]
        keys = [identity.identity(*pair) for pair in zip((full_model, quantized_model), digests, strict=True)]
        if keys[0] == keys[1]:
            raise ValueError(
                f"{cls.NAME}: full_model and quantized_model are the same model, so the error would be exactly 0; "
                "connect the quantized one to quantized_model."
            )
        planned = make_runs(
            cls.NAME,
            cfg,
            consecutive_seeds(first_seed, runs + held_out),
            positive,
            negative,
            clip,
            prompts,
            negative_prompt,
        )
        models = ModelPair(full, full_model, quantized_model, full_key(full, keys[0], schedule), keys[1])
        layers = worthwhile(cls.NAME, correction, full_model, quantized_model)
        settings = Settings(correction, held_out, trim or None, mode == MODES[1], layers, budget)
        total = (runs + held_out + settings.model_runs(runs)) * schedule.steps
        widths = place_widths(full_model) if layers else 0
        store = store_for(cls.NAME, models.full_key, full.channels, schedule, planned, widths)
        progress = Progress(cls.NAME, unique_id(cls), total)
        origin = {
            "full_model": names[0],
            "full_digest": digests[0],
            "quantized_model": names[1],
            "reference": reference,
            "quantized_digest": digests[1],
            "quantization": identity.quantization(quantized_model),
        }
        calibration = Calibration(cls.NAME, models, schedule, planned, settings, progress, origin)
        finished = finish(calibration, calibration.run(store), filename)
        store.clear()
        output_tracking.note(cls.NAME, widgets, finished.path, before)
        return _calibrating.result_output(cls, finished)


NODES = [GimbalQDriftCalibrate]
