"""A calibration in two halves, for machines whose memory does not hold both models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..calibration.trajectories import TrajectoryStore
from ..calibration.trajectory_header import HEADER, read_header, write_header
from ..host import identity, output_tracking, qdrift_folder
from ..host.calibrating.calibration import Calibration
from ..host.calibrating.finish import finish
from ..host.calibrating.layer_means import PlaceWatch
from ..host.calibrating.layers import recorded as recorded_layers
from ..host.calibrating.model_pair import ModelPair, checked, full_key
from ..host.calibrating.recorded import recorded
from ..host.calibrating.recording import Progress, record_all, run_name
from ..host.calibrating.schedule import consecutive_seeds, make_runs, make_schedule
from ..host.calibrating.task import Settings
from . import _calibrating, _inputs
from ._inputs import name_of, unique_id


class GimbalQDriftRecord(io.ComfyNode):
    NAME = "Q-Drift Record Trajectory"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _inputs.schema(
            node_id="GimbalQDriftRecord",
            display_name=cls.NAME,
            category="gimbal/qdrift",
            description="The first half of a calibration, where both models do not fit in system memory: samples with "
            "full precision and writes every model call, and its layers' means, to models/qdrift/trajectories.",
            inputs=[
                _calibrating.full_model(),
                *_calibrating.schedule(),
                *_calibrating.prompts(),
                *_inputs.advanced([_name()]),
            ],
            outputs=[io.String.Output(display_name="path")],
            hidden=[io.Hidden.prompt],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **widgets: Any) -> int:
        return output_tracking.deleted_count(cls.NAME, widgets)

    @classmethod
    def execute(
        cls, full_model, latent, cfg, sampler_name, scheduler, steps, runs, first_seed, held_out, prompts,
        negative_prompt, name, sigmas=None, positive=None, negative=None, clip=None,
    ) -> io.NodeOutput:  # fmt: skip
        widgets = {"cfg": cfg, "sampler_name": sampler_name, "scheduler": scheduler, "steps": steps, "runs": runs}
        widgets |= {"first_seed": first_seed, "held_out": held_out, "prompts": prompts}
        widgets |= {"negative_prompt": negative_prompt, "name": name}
        before = output_tracking.deleted_count(cls.NAME, widgets)
        traits = checked(cls.NAME, "full_model", full_model)
        schedule = make_schedule(cls.NAME, full_model, traits, latent, cfg, sampler_name, scheduler, steps, sigmas)
        weights = identity.weights_digest(full_model)
        seeds = consecutive_seeds(first_seed, runs + held_out)
        planned = make_runs(cls.NAME, cfg, seeds, positive, negative, clip, prompts, negative_prompt)
        settings = {
            "key": full_key(traits, identity.identity(full_model, weights), schedule),
            "traits": traits.settings(),
            "cfg": schedule.cfg,
            "sampler": schedule.sampler,
            "scheduler": schedule.scheduler,
            "batch_index": schedule.batch_index and list(schedule.batch_index),
            "seeds": seeds,
            "held_out": held_out,
            "prompts": [run.prompt for run in planned],
            "full_model": name_of(cls, full_model, "full_model"),
            "full_digest": weights,
        }
        home = qdrift_folder.folder() / qdrift_folder.TRAJECTORIES
        qdrift_folder.check_room(cls.NAME)
        home.mkdir(parents=True, exist_ok=True)
        folder = qdrift_folder.claimed(
            home,
            qdrift_folder.clean(name, "trajectory"),
            "",
            lambda path: _settings_in(path) == settings,
            lambda path, there: path.mkdir(exist_ok=there),
        )
        store = TrajectoryStore(folder)
        store.tidy()
        write_header(folder, settings, {"latent": schedule.latent, "sigmas": schedule.sigmas})
        progress = Progress(cls.NAME, unique_id(cls), len(planned) * schedule.steps)
        fitted = len(planned) - held_out
        watch = PlaceWatch(cls.NAME, schedule.sigmas)
        record_all(cls.NAME, full_model, schedule, planned[:fitted], store, progress, watch)
        record_all(cls.NAME, full_model, schedule, planned[fitted:], store, progress)
        output_tracking.note(cls.NAME, widgets, folder / HEADER, before)
        progress.say(f"Recorded {len(planned)} runs to {folder}")
        return io.NodeOutput(str(folder))


class GimbalQDriftCalibrateFrom(io.ComfyNode):
    NAME = "Q-Drift Calibrate from Trajectory"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _inputs.schema(
            node_id="GimbalQDriftCalibrateFrom",
            display_name=cls.NAME,
            category="gimbal/qdrift",
            description="The second half of a calibration: asks the quantized model at the states of a recorded "
            "trajectory, matches its moments, tries the corrections on held-out runs, and writes what Quantization Fix "
            "needs to models/qdrift. Needs the prompts of the recording.",
            inputs=[
                _calibrating.quantized_model(),
                io.Combo.Input(
                    "trajectory",
                    options=qdrift_folder.trajectory_choices(),
                    tooltip="Folder in models/qdrift/trajectories, as Q-Drift Record Trajectory wrote it. "
                    "Latent, cfg, sampler, steps and seeds come from it.",
                ),
                *_calibrating.prompts(),
                _calibrating.correction(),
                *_inputs.advanced([_calibrating.trim()]),
                _calibrating.filename("calibration"),
                *_inputs.advanced([_calibrating.budget()]),
            ],
            outputs=_calibrating.outputs(),
            hidden=[io.Hidden.prompt],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, trajectory: str | None) -> bool | str:
        """As Q-Drift Load's."""
        try:
            return trajectory is None or bool(qdrift_folder.trajectory_path(cls.NAME, trajectory))
        except ValueError as error:
            return str(error)

    @classmethod
    def fingerprint_inputs(cls, trajectory: str, **widgets: Any) -> str:
        lost = output_tracking.deleted_count(cls.NAME, {**widgets, "trajectory": trajectory})
        try:
            header = read_header(qdrift_folder.trajectory_path(cls.NAME, trajectory))
        except (ValueError, OSError):
            return f"missing {lost}"  # said by execute
        return identity.digest(header, lost)

    @classmethod
    def execute(
        cls, quantized_model, trajectory, prompts, negative_prompt, correction, trim, filename, positive=None,
        negative=None, clip=None, budget=0.0,
    ) -> io.NodeOutput:  # fmt: skip
        widgets = {"trajectory": trajectory, "prompts": prompts, "negative_prompt": negative_prompt}
        widgets |= {"correction": correction, "trim": trim, "filename": filename, "budget": budget}
        before = output_tracking.deleted_count(cls.NAME, widgets)
        folder = qdrift_folder.trajectory_path(cls.NAME, trajectory)
        header, full, schedule = recorded(folder)
        traits = checked(cls.NAME, "quantized_model", quantized_model)
        full.check_same(cls.NAME, "the recorded model", traits, "quantized_model")
        planned = make_runs(
            cls.NAME, schedule.cfg, header["seeds"], positive, negative, clip, prompts, negative_prompt
        )
        if [run.prompt for run in planned] != header["prompts"]:
            raise ValueError(
                f"{cls.NAME}: positive, negative or prompts are not those of the trajectory {trajectory!r}; connect "
                "what was connected when it was recorded."
            )
        qdrift_folder.check_room(cls.NAME)
        store = TrajectoryStore(folder)
        missing = [i + 1 for i, run in enumerate(planned) if not store.holds(run_name(run))]
        if missing:
            raise ValueError(
                f"{cls.NAME}: trajectory {trajectory!r} lacks runs {missing} of {len(planned)}; queue Q-Drift Record "
                "Trajectory again with the same inputs: it resumes where it stopped."
            )
        weights = identity.weights_digest(quantized_model)
        key = identity.identity(quantized_model, weights)
        models = ModelPair(full, None, quantized_model, header["key"], key)
        fitted = list(planned[: len(planned) - header["held_out"]])
        layers = recorded_layers(cls.NAME, correction, store, fitted, quantized_model)
        settings = Settings(correction, header["held_out"], trim or None, layers=layers, budget=budget)
        total = settings.model_runs(len(fitted)) * schedule.steps
        progress = Progress(cls.NAME, unique_id(cls), total)
        origin = {
            "full_model": header["full_model"],
            "full_digest": header["full_digest"],
            "quantized_model": name_of(cls, quantized_model, "quantized_model"),
            "quantized_digest": weights,
            "quantization": identity.quantization(quantized_model),
        }
        calibration = Calibration(cls.NAME, models, schedule, planned, settings, progress, origin)
        finished = finish(calibration, calibration.run(store), filename)
        output_tracking.note(cls.NAME, widgets, finished.path, before)
        return _calibrating.result_output(cls, finished)


def _name() -> io.Input:
    return io.String.Input(
        "name",
        default="trajectory",
        tooltip="Folder in models/qdrift/trajectories. A folder of other inputs is not touched: a number is added.",
    )


def _settings_in(folder: Path) -> dict | None:
    try:
        return read_header(folder)[0]
    except (ValueError, OSError):
        return None


NODES = [GimbalQDriftRecord, GimbalQDriftCalibrateFrom]
