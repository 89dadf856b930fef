"""Where statistics come from: what a reader must know to judge whether they fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from .text import is_number, is_whole

PATHS = ("ve", "flow")
# Between the values that merged files disagree about.
JOINT = " + "
MOST_CFG, MOST_WHOLE, MOST_SEED = 1e6, 10**6, 2**64
# Two sets of statistics that differ in one of these are not about the same thing.
SHARED = (
    "path",
    "latent_channels",
    "latent_format",
    "cfg",
    "steps",
    "full_digest",
    "quantized_digest",
    "quantization",
    "trim",
    "reference",
)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The conditions of a calibration. Each field is a string of that name in the file's metadata.

    Attributes:
        path: "ve" (eps, v and EDM models) or "flow", METHODS.md's table.
        latent_channels: C. latent_format: its name in the host, such as "Flux"; "" if unknown.
        cfg: guidance scale. solver, scheduler, steps: the schedule the trajectories followed.
        runs: trajectories taken in. seeds: one a run, as whole numbers, separated by commas in the file.
        prompt_digest: of all prompts. full_model, quantized_model: names; full_digest, quantized_digest: of weights.
        reference: what full precision was, where it was not a model in full precision; "" where it was.
        quantization: what was seen of it, such as per-layer layouts. trim: JointMoments.update's option, "" for none.
        torch, comfyui, device, attention, date, gimbal: versions, hardware and day, as the host reports them.
        sources: one entry a run that tells its data from every other run's; derived where it is not given.
    Raises:
        ValueError: a value that cannot be, naming the field.
    """

    path: str
    latent_channels: int
    latent_format: str
    cfg: float
    steps: int
    runs: int
    seeds: tuple[int, ...]
    solver: str = ""
    scheduler: str = ""
    prompt_digest: str = ""
    full_model: str = ""
    full_digest: str = ""
    quantized_model: str = ""
    quantized_digest: str = ""
    reference: str = ""
    quantization: str = ""
    trim: str = ""
    torch: str = ""
    comfyui: str = ""
    device: str = ""
    attention: str = ""
    date: str = ""
    gimbal: str = ""
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        def refuse(name: str, wanted: str) -> None:
            raise ValueError(f"Provenance: {name} is {_shown(getattr(self, name))}; it must be {wanted}.")

        for field in fields(self):
            if field.type == "str" and not isinstance(getattr(self, field.name), str):
                refuse(field.name, "text")
        if self.path not in PATHS:
            refuse("path", " or ".join(PATHS))
        for name in ("latent_channels", "steps", "runs"):
            if not is_whole(getattr(self, name), 1, MOST_WHOLE):
                refuse(name, f"a whole number of at least 1 and at most {MOST_WHOLE}")
        if not is_number(self.cfg, -MOST_CFG, MOST_CFG):
            refuse("cfg", f"a finite number of at most {MOST_CFG:g} either way")
        if not isinstance(self.seeds, tuple) or not all(is_whole(s, -MOST_SEED, MOST_SEED) for s in self.seeds):
            refuse("seeds", "a tuple of whole numbers of at most 64 bits")
        if len(self.seeds) != self.runs:
            refuse("seeds", f"one whole number for each of the {self.runs} runs")
        if not self.sources:
            origin = " ".join(f"{self.prompt_digest} {self.solver}".split())
            object.__setattr__(self, "sources", tuple(f"{origin} {seed}".strip() for seed in self.seeds))
        if len(self.sources) != self.runs or any("\n" in source for source in self.sources):
            refuse("sources", f"one line of text for each of the {self.runs} runs")

    def to_metadata(self) -> dict[str, str]:
        """All fields as text, as they stand in the file."""
        texts = {field.name: str(getattr(self, field.name)) for field in fields(self)}
        texts["cfg"] = repr(float(self.cfg))
        texts["seeds"] = ",".join(str(seed) for seed in self.seeds)
        texts["sources"] = "\n".join(self.sources)
        # A file name may hold bytes that are no text; a safetensors header takes text alone.
        return {name: text.encode("utf-8", "replace").decode("utf-8") for name, text in texts.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Provenance:
        """The inverse. Fields this version does not know are ignored, absent ones with a default take it.

        Raises:
            ValueError: a field is missing or cannot be read, named.
        """
        given: dict[str, Any] = {}
        for field in fields(cls):
            text = metadata.get(field.name)
            if text is None:
                if field.name in ("path", "latent_channels", "latent_format", "cfg", "steps", "runs", "seeds"):
                    raise ValueError(f"the metadata lacks {field.name}")
                continue
            try:
                given[field.name] = _READERS.get(str(field.type), str)(text)
            except ValueError:
                wanted = {"int": "a whole number", "float": "a number"}.get(
                    str(field.type), "whole numbers and commas"
                )
                raise ValueError(f"{field.name} is {_shown(text)}; it must be {wanted}") from None
        return cls(**given)

    @classmethod
    def merged(cls, parts: Sequence[Provenance]) -> Provenance:
        """Of statistics put together: runs, seeds and sources one after the other, differing texts joined by " + ".

        Raises:
            ValueError: the parts differ in one of SHARED, or a run is in two of them.
        """
        first = parts[0]
        for other in parts[1:]:
            for name in SHARED:
                if getattr(other, name) != getattr(first, name):
                    ours, theirs = _shown(getattr(first, name)), _shown(getattr(other, name))
                    raise ValueError(f"{name} differs: {ours} and {theirs}; merge calibrations of one setting.")
        values: dict[str, Any] = {}
        for field in fields(cls):
            each = [getattr(part, field.name) for part in parts]
            if str(field.type).startswith("tuple"):
                values[field.name] = tuple(value for part in each for value in part)
            elif field.type == "str":
                texts = dict.fromkeys(text for value in each for text in value.split(JOINT) if text)
                values[field.name] = each[0] if len(set(each)) == 1 else JOINT.join(texts)
            else:
                values[field.name] = sum(each) if field.name == "runs" else each[0]
        seen: set[str] = set()
        for source in values["sources"]:
            if source in seen:
                raise ValueError(f"the run {_shown(source)} (prompts, solver, seed) is in two of them; leave one out.")
            seen.add(source)
        return cls(**values)


def _whole_numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",")) if text else ()


_READERS: dict[str, Callable[[str], object]] = {
    "int": int,
    "float": float,
    "tuple[int, ...]": _whole_numbers,
    "tuple[str, ...]": lambda text: tuple(text.split("\n")) if text else (),
}


def _shown(value: object) -> str:
    """For a message: short, on one line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
