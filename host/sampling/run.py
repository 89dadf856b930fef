"""What one sampling run remembers and reports. It is made when sampling starts and dropped when it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...core.schedule import StepCounter
from ..messages import Messages
from .attention import AttentionReader
from .observe import MapRecorder
from .stages import (
    CallContext,
    DenoisedStage,
    GuidanceContext,
    GuidanceStage,
    NetworkRun,
    NetworkStage,
    RunSchedule,
    Stage,
)


class Record:
    """What a run knows of one stage."""

    def __init__(self, stage: Stage, schedule: RunSchedule):
        sigmas = schedule.sigmas
        self.messages = Messages(stage.node, stage.node_id)
        self.state = stage.new_state() if isinstance(stage, DenoisedStage) else None
        self.network: NetworkRun | None = stage.new_run(schedule) if isinstance(stage, NetworkStage) else None
        self.counter = StepCounter(sigmas)
        self.seen = self.acted = 0  # model calls
        self.without_attention = 0  # model calls whose attention it wanted and did not get
        self.cfg: float | None = None  # the sampler's, as a guidance stage met it
        self.refusal = ""  # why it could not act
        self.map_recorder = MapRecorder(sigmas)
        self.nonfinite: Tensor | None = None  # (B,) bool, on the device: asked for its value once, at the end

    def begin(self, stage: Stage) -> None:
        """It acts on one more model call."""
        self.acted += 1
        if self.acted == 1:
            self.messages.meanwhile(f"acting ({self.settings(stage)})")

    def settings(self, stage: Stage) -> str:
        if isinstance(stage, GuidanceStage) and self.cfg is not None:
            return stage.settings_at(self.cfg)
        return stage.settings()

    def watch(self, x: Tensor) -> None:
        found = nonfinite_samples(x)
        self.nonfinite = found if self.nonfinite is None else self.nonfinite | found


class SamplingRun:
    """What one sampling run remembers."""

    def __init__(self, stages: tuple[Stage, ...], schedule: RunSchedule, packed: bool = False):
        self.records = {stage: Record(stage, schedule) for stage in stages}
        self.begun = 0  # steps, by the sampler's callback: made once a step, after its first model call
        self.attention = AttentionReader() if reads_attention(stages) else None
        self.packed = packed  # several latents (video and audio) flattened into one tensor

    def before(self, sigma: Tensor) -> None:
        """A call of the model comes, at noise level sigma (B,)."""
        for record in self.records.values():
            if record.network is not None:
                record.network.before(self.begun, lambda: float(sigma.flatten()[0]))

    @contextmanager
    def inside(self, network: nn.Module) -> Iterator[None]:
        """In which a call of the network is made."""
        acting = [(stage, record, record.network) for stage, record in self.records.items() if record.network]
        for _, record, each in acting:
            record.seen += 1
            each.look(network)
        with ExitStack() as entered:
            for stage, record, each in acting:
                if entered.enter_context(each.around(network)):
                    record.begin(stage)
            yield

    def denoised(self, denoised: Tensor, sigma: Tensor, patcher: ModelPatcher) -> Tensor:
        watched = False
        attention = None if self.attention is None else self.attention.take(denoised.shape)
        for stage, record in self.records.items():
            if not isinstance(stage, DenoisedStage) or not self._may_act(stage, record, sigma, patcher):
                continue
            record.refusal = stage.unsupported_reason(denoised)
            if record.refusal:
                continue
            if not watched:  # the stages behind it see what it makes of the same prediction
                record.watch(denoised)
                watched = True
            record.begin(stage)
            record.without_attention += stage.reads_attention and attention is None
            # Asked for only where it is needed: sigma's value waits for the device.
            step = record.counter.step(float(sigma.flatten()[0]), self.begun) if stage.reads_step else None
            call = CallContext(step, attention, partial(record.map_recorder.add, sigma, self.begun))
            denoised = stage.apply(denoised, record.state, call)
        return denoised

    def guidance(self, stage: GuidanceStage, args: dict) -> list[Tensor]:
        predictions, record, cfg = list(args["conds_out"]), self.records[stage], args["cond_scale"]
        if not self._may_act(stage, record, args["sigma"], args["model"].current_patcher):
            return predictions
        if len(predictions) != 2:
            record.refusal = f"This guider combines {len(predictions)} predictions; it knows what to do with two."
        elif args["conds"][1] is None or cfg == 0.0:  # ComfyUI leaves the second out at cfg 1, or without a negative
            record.refusal = (
                f"At cfg {cfg:g}, or without a negative, there is no guidance to change; raise cfg above 1."
            )
        else:
            record.refusal = stage.unsupported_reason(predictions[0], cfg)
        if not record.refusal:
            record.watch(predictions[0])
            record.cfg = cfg
            record.begin(stage)
            cond, uncond = predictions
            record_maps = partial(record.map_recorder.add, args["sigma"], self.begun)
            predictions[0] = stage.apply(cond, uncond, GuidanceContext(args["input"], cfg, record_maps))
        return predictions

    def end(self, samples: Tensor) -> None:
        """Say what was done, and leave what was seen to the preview nodes."""
        self._report()
        for stage, record in self.records.items():
            if record.map_recorder:
                stage.observer.keep(record.map_recorder.finish(samples))

    def stopped(self) -> None:
        """The run ended before its time, by a Cancel or an error: leave no node saying that it acts."""
        for record in self.records.values():
            if record.acted:
                record.messages.add(f"stopped after {record.acted} model calls")

    def _report(self) -> None:
        for stage, record in self.records.items():
            messages = record.messages
            if record.network is not None and record.seen:
                words = record.network.report()
                messages.info(words) if record.acted else messages.warning(words)
            elif record.refusal and not record.acted:
                messages.warning(f"did nothing. {record.refusal}")
            elif record.acted:
                acted = f"acted on {record.acted} of {record.seen} model calls"
                messages.info(f"{acted} ({record.settings(stage)}).")
                if record.without_attention and self.attention is not None:
                    messages.warning(
                        f"took the gradient for the attention on {record.without_attention} of {record.acted} model calls. "
                        f"{self.attention.refusal}."
                    )
            elif record.seen:
                window = stage.window
                messages.warning(
                    f"did nothing. None of this run's {record.seen} model calls lies between start_percent "
                    f"{window.start_percent:g} and end_percent {window.end_percent:g}."
                )
            else:
                messages.warning("did nothing. This sampler or guider never called it.")
        self._report_nonfinite()

    def _may_act(self, stage: Stage, record: Record, sigma: Tensor, patcher: ModelPatcher) -> bool:
        record.seen += 1
        if self.packed:
            record.refusal = (
                "This latent packs several parts (video and audio) into one; it cannot yet tell them apart."
            )
            return False
        # Asked for here, not when the node ran: a sampling patch (shift, ...) may come after it in the graph.
        return stage.window.covers(sigma, patcher.get_model_object("model_sampling"))

    def _report_nonfinite(self) -> None:
        for record in self.records.values():
            if record.nonfinite is not None and bool(record.nonfinite.any()):
                warn_nonfinite(record.messages, "the model's prediction", record.nonfinite)
                return  # said once, for the first node that met it


def nonfinite_samples(x: Tensor) -> Tensor:
    """(B,) bool: which samples hold NaN or infinity. One reading pass, no wait for the device."""
    return ~x.flatten(1).sum(1, dtype=torch.float32).isfinite()


def warn_nonfinite(messages: Messages, what: str, found: Tensor) -> None:
    samples = ", ".join(str(i) for i, bad in enumerate(found.tolist()) if bad)
    messages.warning(
        f"{what} held NaN or infinity in sample {samples} of the batch; other samples are not touched by it. "
        "Look for its cause before this node (precision, VAE, a broken file)."
    )


def reads_attention(stages: tuple[Stage, ...]) -> bool:
    return any(isinstance(stage, DenoisedStage) and stage.reads_attention for stage in stages)
