"""What a kernel asks of an accelerator: its operators counted, and its waits found, on the meta device. Needs torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "is_nonzero", "equal")


class Operators(TorchDispatchMode):
    """Counts what a device would be given to do: operators whose result is not a view, on other devices than the CPU.

    A wait cannot go unseen: values of the meta device are not there to be asked for. Copies to the CPU, which the meta
    device would take for granted, and operators of which the size of the result depends on values, are refused.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        result = func(*args, **(kwargs or {}))
        results = [
            r for r in (result if isinstance(result, (tuple, list)) else [result]) if isinstance(r, torch.Tensor)
        ]
        given = [a for a in args if isinstance(a, torch.Tensor)]
        there = any(t.device.type == "meta" for t in (*results, *given))
        if there:
            assert name not in WAITS, f"{name} waits for the device"
            assert not any(r.device.type == "cpu" for r in results), f"{name} copies to the CPU"
            assert not any(r.dtype == torch.float64 for r in results), f"{name} computes in float64, which MPS has not"
            if any(a.device.type == "cpu" and a.ndim > 0 for a in given):  # from the CPU: without a wait only if asked
                assert (kwargs or {}).get("non_blocking"), f"{name} copies from the CPU and waits"
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if there and not view:
            self.counts[name] += 1
        return result

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def operators(call: Callable[[], object]) -> int:
    """Operators of one call on tensors of the meta device. AssertionError if it would wait for a device."""
    with Operators() as seen:
        call()
    return seen.total
