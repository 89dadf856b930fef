"""How far apart two runs of a network may end that differ by rounding alone.

CPU kernels add up in an order of their own, by instruction set, number of threads and size of the batch, and a sampler
carries the difference on. No fixed number fits every CPU. So a test measures what rounding does to the plain network,
on the machine and in the very test that needs it, and allows SAFETY times as much.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

UNIT = torch.finfo(torch.float32).eps
# A node may carry rounding further than the plain network does: a clamp's limits, a map's ends and a solver's history
# are themselves computed from rounded values. Seen: up to 3.6, with torch's kernels for AVX-512, for AVX2 and for none.
SAFETY = 8.0
# In units of float32 rounding at the largest value. Counts where the plain network happens to round both runs alike.
FLOOR = 16.0


def assert_equal_but_for_rounding(found: Tensor, expected: Tensor, own: float) -> None:
    """own: the largest difference that rounding makes to the plain network, of `of_run` or `of_batch`."""
    torch.testing.assert_close(found, expected, rtol=0.0, atol=allowed(expected, own))


def allowed(expected: Tensor, own: float) -> float:
    """The largest difference that passes for rounding."""
    return max(SAFETY * own, FLOOR * UNIT * float(expected.abs().max()))


def of_run(run: Callable[[Any], Tensor], model: Any, plain: Tensor | None = None) -> float:
    """The largest difference in `run(model)` when each of the model's inputs and predictions is rounded otherwise.

    plain: what `run(model)` gave, where it is known.
    """
    return float((run(nudged(model)) - (run(model) if plain is None else plain)).abs().max())


def of_batch(run: Callable[[Any, Tensor], Tensor], model: Any, noise: Tensor) -> float:
    """The largest difference between `run(model, noise)` of a batch and of its samples one by one."""
    return float((run(model, noise) - one_by_one(run, model, noise)).abs().max())


def one_by_one(run: Callable[[Any, Tensor], Tensor], model: Any, noise: Tensor) -> Tensor:
    return torch.cat([run(model, sample) for sample in noise.split(1)])


def nudged(model: Any) -> Any:
    """A clone whose guided predictions start from, and give, values one unit of rounding away."""
    from comfy.patcher_extension import WrappersMP

    generator = torch.Generator()

    def nudge(x: Tensor) -> Tensor:
        # Of random sign: what always goes the same way is a change of scale, which networks with norms do not see.
        return x * (1 + UNIT * torch.randint(-1, 2, x.shape, generator=generator))

    def predict(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        generator.manual_seed(0)
        return nudge(executor(nudge(x), *args, **kwargs))

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "rounding", predict)
    return clone
