"""QSilk at every step, at guidance that burns and in few steps: which runs are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from gimbal.core.aqclip import AQClipState, aqclip
from gimbal.core.confidence import tile_confidence
from gimbal.core.micrograin import micrograin

from .runs import GuidedRow
from .samg import PlainGuidance

# A latent here has 16 x 16 positions: tiles in the proportion that 32 has to a picture of 64 x 64 positions.
TILE, STRIDE = 8, 4
EMA_BETA = 0.8
ONE_TILE = 32, 16  # the node's defaults: more than a whole latent
GENTLE = {"corridor": "widening", "form": "smooth", "k_min": 2.5, "k_max": 4.5}  # the node's corridors
STRONG = {"corridor": "widening", "form": "smooth", "k_min": 1.75, "k_max": 3.0}
PAPER = {"corridor": "paper", "form": "tanh", "alpha": 2.0}
SHEETS = (6.0, 9.0, 12.0)  # guidance of the contact sheets, at SHEET_STEPS
SHEET_STEPS = 8
CURVE = (1.0, 2.0, 3.0, 4.5, 6.0, 7.5, 9.0, 12.0)  # plain guidance in SHEET_STEPS, to compare at equal contrast
PLAIN = "plain"


class Limited(PlainGuidance):
    """Plain guidance, then a limit on each step's guided prediction; state lives as long as a batch's sampling."""

    def __init__(self, scale: float, make: Callable[[], Callable[[Tensor], Tensor]]) -> None:
        super().__init__(scale)
        self.make = make

    def start(self, batch: int) -> None:
        self.apply = self.make()

    def limit(self, denoised: Tensor) -> Tensor:
        return self.apply(denoised)


class ByAttention(Limited):
    """AQClip by the attention of the network under the class, read as the node does."""

    def __init__(self, scale: float, corridor: dict) -> None:
        from gimbal.host.sampling.attention import AttentionReader  # ComfyUI is on the path once the network is built

        self.reader = AttentionReader()
        super().__init__(scale, lambda: _aqclip(corridor, self.confidence))

    def confidence(self, denoised: Tensor) -> Tensor:
        tokens = self.reader.take(denoised.shape)
        if tokens is None:
            raise RuntimeError(f"evidence: {self.reader.refusal}")
        return tile_confidence(tokens, denoised.shape[-2:], TILE, STRIDE)


def _aqclip(
    corridor: dict,
    confidence: Callable[[Tensor], Tensor] | None = None,
    tiles: tuple[int, int] = (TILE, STRIDE),
    ema_beta: float = EMA_BETA,
) -> Callable[[Tensor], Tensor]:
    state = AQClipState()

    def clip(denoised: Tensor) -> Tensor:
        chosen = confidence and confidence(denoised)
        return aqclip(denoised, *tiles, ema_beta=ema_beta, confidence=chosen, state=state, **corridor)

    return clip


LIMITS: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    PLAIN: lambda: torch.Tensor.contiguous,
    "micrograin hard": lambda: micrograin,
    "micrograin smooth": lambda: partial(micrograin, form="smooth"),
    "AQClip gentle": lambda: _aqclip(GENTLE),
    "AQClip strong": lambda: _aqclip(STRONG),
    "AQClip gentle, no average": lambda: _aqclip(GENTLE, ema_beta=0.0),
    "AQClip gentle, one tile": lambda: _aqclip(GENTLE, tiles=ONE_TILE),
    "AQClip paper": lambda: _aqclip(PAPER),
    "micrograin tanh": lambda: partial(micrograin, form="tanh", alpha=2.0),
}
BY_ATTENTION = {"AQClip attention": GENTLE, "AQClip attention, strong": STRONG}


def methods() -> dict[str, Callable[[float], Limited]]:
    """Name -> what makes a run's rule of its guidance."""
    limits = {name: partial(Limited, make=make) for name, make in LIMITS.items()}
    return limits | {name: partial(ByAttention, corridor=corridor) for name, corridor in BY_ATTENTION.items()}


SPARING = (  # at SHEET_STEPS only
    *("AQClip gentle, no average", "AQClip gentle, one tile", "AQClip paper"),
    *("micrograin tanh", "AQClip attention, strong"),
)
SETTINGS = (
    *((guidance, SHEET_STEPS, "euler") for guidance in (3.0, 6.0, 9.0, 12.0)),
    *((guidance, steps, "euler") for steps in (6, 10) for guidance in (6.0, 12.0)),
    (6.0, SHEET_STEPS, "dpmpp_2m"),
)


def name(method: str, guidance: float, steps: int, solver: str) -> str:
    return f"{method}, {guidance:g}, {steps} {solver}"


def rows() -> Iterator[GuidedRow]:
    for guidance in CURVE:
        rule = partial(PlainGuidance, guidance)
        yield GuidedRow(
            name(PLAIN, guidance, SHEET_STEPS, "euler"), SHEET_STEPS, "euler", lambda seed, rule=rule: rule()
        )
    for guidance, steps, solver in SETTINGS:
        for method, make in methods().items():
            if method not in SPARING or (steps, solver) == (SHEET_STEPS, "euler"):
                rule = partial(make, guidance)
                yield GuidedRow(name(method, guidance, steps, solver), steps, solver, lambda seed, rule=rule: rule())
