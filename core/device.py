"""Which of a kernel's two forms computes a tensor. The one place that looks at a device's type.

On the CPU a kernel works in pieces that stay in the cache and may look at values. Everywhere else (CUDA, ROCm, MPS, XPU)
an operator costs a launch and a look at a value waits for the device, so the same numbers come from few large operators.
The second form runs on the CPU as well, to be tested there, and on the meta device, where its operators are counted.
"""

from __future__ import annotations

from torch import Tensor


def on_host(x: Tensor) -> bool:
    """Whether looking at x's values is free. On an accelerator it would stall the sampler until the device is done."""
    return x.device.type == "cpu"
