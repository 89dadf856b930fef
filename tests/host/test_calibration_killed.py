"""A calibration with everything in it, killed between any two network calls: the next one writes the same file."""

import os
import signal

import pytest
from safetensors import safe_open

pytestmark = pytest.mark.usefixtures("folders")

STEPS, RUNS, HELD_OUT, POINTS = 2, 2, 1, 10  # of each mode
GIVEN = {"steps": STEPS, "runs": RUNS, "held_out": HELD_OUT, "correction": "drift and moments"}


class Calls:
    """Counts network calls, and kills the process before one of them.

    Slots keep what it holds out of the models' digests, by which the next process finds what this one left.
    """

    __slots__ = ("deadly", "made")

    def __init__(self, deadly=0):
        self.made, self.deadly = 0, deadly

    def __call__(self):
        self.made += 1
        if self.made == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)


def counting(model, calls):
    """A clone that reports its network calls."""
    from comfy.patcher_extension import WrappersMP

    def count(executor, *args, **kwargs):
        calls()
        return executor(*args, **kwargs)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "count", count)
    return clone


@pytest.fixture
def watched(tiny, twin, calibrate):
    """`watched(calls, mode, budget)`: a calibration whose network calls are counted; the path of its file.

    With a budget the quantized model is one that rounds activations, and a precision plan is found.
    """

    def watched(calls, mode, budget):
        quantized = tiny.quantized("sd3") if budget else twin("sd3")
        full, quantized = (counting(model, calls) for model in (tiny.model("sd3"), quantized))
        return calibrate(full_model=full, quantized_model=quantized, mode=mode, budget=budget, **GIVEN)[2]

    return watched


def contents(path):
    """Tensors, and the metadata but for the day and the checksum: safetensors writes metadata in any order."""
    with safe_open(path, "pt") as file:
        names = file.keys()  # it is no mapping
        return {name: file.get_tensor(name) for name in names}, {**file.metadata(), "date": "", "checksum": ""}


def killed(run, call):
    """Whether a process of its own, which kills itself before this call, was killed rather than ended."""
    child = os.fork()
    if child == 0:
        try:
            run(Calls(deadly=call))
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize(
    "mode, budget, points",
    [("two passes", 0.0, POINTS), ("interleaved", 0.0, POINTS), ("two passes", 0.5, POINTS // 2)],
)
def test_killed_at_points_over_all_of_it(watched, folders, mode, budget, points):
    whole = Calls()
    path = watched(whole, mode, budget)
    tensors, metadata = contents(path)
    assert "layer_offset" in tensors and "state_scale_layers" in tensors and '"seen"' in metadata["trial"]
    assert ("precision_plan" in metadata) == bool(budget)
    os.unlink(path)
    for call in sorted({2 + round(i * (whole.made - 2) / (points - 1)) for i in range(points)}):
        assert killed(lambda calls: watched(calls, mode, budget), call), call
        assert not list(folders.glob("*.safetensors"))
        again = Calls()
        path = watched(again, mode, budget)
        found, words = contents(path)
        assert set(found) == set(tensors)
        apart = {name: float((found[name].double() - t.double()).abs().max()) for name, t in tensors.items()}
        assert not any(apart.values()) and words == metadata, (call, apart)
        # Lost is one run at most, or the step by step matching of all runs' moments.
        assert call - 1 + again.made <= whole.made + STEPS * RUNS, (call, again.made, whole.made)
        os.unlink(path)
        assert not list(folders.rglob("*.partial"))
