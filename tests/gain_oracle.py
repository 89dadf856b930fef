"""Q-Drift's gains from what a stock sampler does, without any of the package's code (METHODS.md 4.2).

The sampler runs on models whose answers are prescribed: all zero but for one output, so that its states spell out the
weight of that output. What is prescribed is what the solver keeps, D or d = (x - D)/sigma; then a step's response is
that of Eq. 35, with the earlier outputs as the history holds them.
"""

import math
from types import SimpleNamespace

import torch

KEEPS = {
    "dpmpp_2m": "denoised",
    "res_multistep": "denoised",
    "ipndm": "derivative",
    "ipndm_v": "derivative",
    "deis": "derivative",
    "lms": "derivative",
    "gradient_estimation": "derivative",
}


def alpha(path, sigma):
    return 1.0 - sigma if path == "flow" else 1.0


def states(sampler, sigmas, answer):
    """(steps + 1,): x at each level from x = 0; answer(x, sigma, call) gives the denoised x."""
    seen = []

    def model(x, sigma, **_):
        seen.append(float(x))
        return answer(x, float(sigma[0]), len(seen) - 1)

    # From ComfyUI 0.33.0 on, res_multistep asks the model's sampling object for a `noise_scale`, and does without one.
    model.inner_model = SimpleNamespace(model_patcher=SimpleNamespace(get_model_object=lambda name: None))
    x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    last = sampler(model, x, sigmas, disable=True)
    return [*seen, float(last)]


def responses(sampler, sigmas, kind):
    """[call][level]: how an output of 1 at that call alone moves the states, all others being 0."""

    def answer(call):
        def denoised(x, sigma, i):
            unit = 1.0 if i == call else 0.0
            return x * 0.0 + unit if kind == "denoised" else x - sigma * unit

        return denoised

    return [states(sampler, sigmas, answer(call)) for call in range(len(sigmas) - 1)]


def paper_gains(sampler, sigmas, kind, path, variance):
    """Eq. 37, in y = x / alpha: sum of squared weights of the errors, by the length of the step in sigma_bar^2."""
    levels, found = sigmas.tolist(), responses(sampler, sigmas, kind)
    gains = []
    for i in range(len(levels) - 1):
        carry = levels[i + 1] / levels[i] if kind == "denoised" else 1.0  # exponential and Adams steps
        added = 0.0
        for call in range(i + 1):
            weight = found[call][i + 1] - carry * found[call][i]
            error = levels[call] if kind == "denoised" else 1.0  # of D, from that of d
            added += (weight * error / alpha(path, levels[i + 1])) ** 2 * variance(levels[call])
        gains.append(added / length(path, levels[i], levels[i + 1]))
    return torch.tensor(gains, dtype=torch.float64)


def accumulated_gains(sampler, sigmas, path, variance):
    """Eq. 36 with the variance that y really gains, outputs taken as eps that do not answer to the state."""
    levels = sigmas.tolist()

    def answer(call):
        def denoised(x, sigma, i):
            eps = 1.0 if i == call else 0.0
            if alpha(path, sigma) == 0.0:
                return x - eps  # flow at sigma 1: the velocity
            return (x - sigma * eps) / alpha(path, sigma)

        return denoised

    found = [states(sampler, sigmas, answer(call)) for call in range(len(levels) - 1)]
    gains, before = [], 0.0
    for i in range(len(levels) - 1):
        held = 0.0
        for call in range(i + 1):
            scale = alpha(path, levels[call]) or 1.0
            held += (scale * found[call][i + 1] / alpha(path, levels[i + 1])) ** 2 * variance(levels[call])
        gains.append(max((held - before) / length(path, levels[i], levels[i + 1]), 0.0))
        before = held
    return torch.tensor(gains, dtype=torch.float64)


def length(path, sigma, sigma_next):
    """Of a step in sigma_bar^2; infinite from flow's sigma 1."""
    if alpha(path, sigma) == 0.0:
        return math.inf
    return (sigma / alpha(path, sigma)) ** 2 - (sigma_next / alpha(path, sigma_next)) ** 2
