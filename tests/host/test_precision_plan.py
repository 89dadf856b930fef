"""The precision plan on real ComfyUI models: which calls it acts on, that nothing of it stays, and what it says."""

import logging
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

NODE = "Keep Composition (Precision Plan)"
FAMILY, LAYER = "sd3", "joint_blocks.0.x_block.mlp.fc1"


def planned(model, first=0, last=0, layers=""):
    from gimbal.nodes.precision_plan import GimbalPrecisionPlan

    return GimbalPrecisionPlan.execute(model, first, last, layers).args[0]


def watched(tiny, model, family=FAMILY, layer=LAYER, **options):
    """For each call of the network its noise level, and whether the layer saw unrounded activations; the samples."""
    calls = []
    forward = model.object_patches[f"diffusion_model.{layer}.forward"]

    def note(apply, args):
        output = apply(args["input"], args["timestep"], **args["c"])
        calls[-1] = (float(args["timestep"][0]), calls[-1])
        return output

    clone = model.clone()
    clone.set_model_unet_function_wrapper(note)
    module = clone.get_model_object(f"diffusion_model.{layer}")
    handle = module.register_forward_hook(lambda *_: calls.append(forward.switch.unrounded))
    try:
        samples = tiny.sample(clone, family, **options)
    finally:
        handle.remove()
    return calls, samples


def said(caplog, run):
    with caplog.at_level(logging.INFO, "gimbal"):
        caplog.clear()
        run()
    return [line for line in caplog.messages if line.startswith(NODE)]


def left_behind(model):
    """Switches that are on and hooks that are left."""
    from gimbal.host.precision_switches import switches

    network = model.model.diffusion_model
    on = [each.name for each in switches(network) if each.is_on]
    hooks = [name for name, module in network.named_modules() if module._forward_hooks or module._forward_pre_hooks]
    return on, hooks


def test_all_steps_are_the_model_with_unrounded_activations(tiny):
    without = tiny.quantized(FAMILY, activation_bits="off")
    model = tiny.quantized(FAMILY)
    wanted = tiny.sample(without, FAMILY)
    assert not torch.equal(tiny.sample(model, FAMILY), wanted)
    assert torch.equal(tiny.sample(planned(model, first=3), FAMILY), wanted)
    assert torch.equal(tiny.sample(planned(model, first=1, last=99), FAMILY), wanted)


def test_first_predictions_are_unrounded_and_later_ones_start_from_them(tiny, denoised_seen):
    model, without = tiny.quantized(FAMILY), tiny.quantized(FAMILY, activation_bits="off")
    found = denoised_seen(planned(model, first=2), steps=5)
    exact, rounded = denoised_seen(without, steps=5), denoised_seen(model, steps=5)
    assert [torch.equal(a, b) for a, b in zip(found, exact, strict=True)] == [True, True, False, False, False]
    assert not any(torch.equal(a, b) for a, b in zip(found, rounded, strict=True))


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize(("first", "last"), [(2, 0), (0, 2), (1, 1)])
@pytest.mark.parametrize(
    "sampler",
    [
        "euler",
        "heun",
        "dpm_2",
        "dpmpp_2s_ancestral",
        "dpmpp_sde",
        "dpmpp_2m",
        "uni_pc",
        "lms",
        "dpm_fast",
        "dpm_adaptive",
    ],
)
def test_a_step_is_the_interval_of_the_schedule_that_a_call_lies_in(tiny, sampler, first, last, cfg):
    from gimbal.host.calibrating.sampling_runs import sigmas_for

    model, steps = planned(tiny.quantized(FAMILY), first, last), 6
    calls, samples = watched(tiny, model, sampler=sampler, steps=steps, cfg=cfg)
    sigmas = sigmas_for(model, sampler, "simple", steps).tolist()
    assert samples.isfinite().all() and len(calls) >= steps

    def step(sigma):
        return max(sum(level * (1 + 1e-5) >= sigma for level in sigmas[:-1]) - 1, 0)

    wanted = [step(sigma) < first or step(sigma) >= steps - last for sigma, _ in calls]
    assert [unrounded for _, unrounded in calls] == wanted
    assert any(wanted) and not all(wanted)


class _Reads(TorchDispatchMode):
    """Counts the values that the host asks the device for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_it_waits_for_the_device_at_the_edges_of_the_plan_alone(tiny):
    def reads(model, steps):
        tiny.sample(model, FAMILY, steps=1)  # loads it
        with _Reads() as counting:
            tiny.sample(model, FAMILY, steps=steps)
        return counting.count

    model = tiny.quantized(FAMILY)
    extra = [reads(planned(model, first=3, last=2), steps) - reads(model, steps) for steps in (8, 12)]
    own = 3  # whether there is noise to start from, the schedule's ends
    assert extra[0] == extra[1] <= own + 3  # the second call, and the two edges


def test_without_steps_the_model_itself_is_given_back(tiny):
    model = tiny.quantized(FAMILY)
    assert planned(model, 0, 0) is model
    with pytest.raises(ValueError, match=f"{NODE[:16]}.*first_steps is -1.*at least 0"):
        planned(model, -1)


def test_nothing_is_left_after_a_run_a_cancel_or_an_error(tiny):
    model = planned(tiny.quantized(FAMILY), first=3)
    first = tiny.sample(model, FAMILY, steps=4)
    assert left_behind(model) == ([], [])
    inside = model.get_model_object(f"diffusion_model.{LAYER}")

    class Stopped(Exception):
        pass

    for kind in (Stopped, KeyboardInterrupt):

        def stop(*_, kind=kind):
            raise kind

        for where in (inside.register_forward_hook, inside.register_forward_pre_hook):
            handle = where(stop)
            with pytest.raises(kind):
                tiny.sample(model, FAMILY, steps=4)
            handle.remove()
            assert left_behind(model) == ([], [])

    def cancel(step, *_):
        raise Stopped

    with pytest.raises(Stopped):
        tiny.sample(model, FAMILY, steps=4, callback=cancel)
    assert left_behind(model) == ([], [])
    assert torch.equal(tiny.sample(model, FAMILY, steps=4), first)


def test_it_says_what_it_did(tiny, caplog):
    model = tiny.quantized(FAMILY)
    line = (
        f"{NODE}: ran 2 of 8 steps with unrounded activations, 25 % of these layers' multiply-adds in full precision."
    )
    assert said(caplog, lambda: tiny.sample(planned(model, 2), FAMILY, steps=8)) == [line]


def test_layers_can_be_chosen_and_their_products_are_counted(tiny, caplog):
    from gimbal.host.precision_switches import switches

    model = planned(tiny.quantized(FAMILY), 3, layers="joint_blocks.0.*fc1, *.1.*fc1")
    calls, _ = watched(tiny, model)
    assert all(unrounded for _, unrounded in calls)
    calls, _ = watched(tiny, model, layer="joint_blocks.0.x_block.mlp.fc2")
    assert not any(unrounded for _, unrounded in calls)
    products, chosen = 0, 0
    shapes = {}
    for each in switches(model.model.diffusion_model):
        name = each.name
        hook = each.module.register_forward_hook(
            lambda m, a, out, name=name: shapes.update({name: out.numel() * m.in_features})
        )
        tiny.sample(model, FAMILY, steps=1)
        hook.remove()
    products, chosen = sum(shapes.values()), sum(value for name, value in shapes.items() if name.endswith("fc1"))
    lines = said(caplog, lambda: tiny.sample(model, FAMILY))
    share = 100 * chosen / products
    layers = [name for name in shapes if name.endswith("fc1")]
    assert f"in {len(layers)} of {len(shapes)} layers that round them, {share:.3g} % of these" in lines[0]
    lines = said(caplog, lambda: tiny.sample(planned(tiny.quantized(FAMILY), 3, layers="nothing.*"), FAMILY))
    assert "did nothing. No layer that rounds its activations matches nothing.*; there are joint_blocks.0." in lines[0]


@pytest.mark.parametrize("bits", [None, "off"])
def test_a_model_that_rounds_no_activations_gets_a_message_and_the_same_picture(tiny, caplog, bits):
    model = tiny.model(FAMILY) if bits is None else tiny.quantized(FAMILY, activation_bits=bits)
    found = []
    lines = said(caplog, lambda: found.append(tiny.sample(planned(model, 2), FAMILY)))
    assert lines == [
        f"{NODE}: did nothing. This model rounds no activations here, and its weights' own error cannot be repaired so."
    ]
    assert torch.equal(found[0], tiny.sample(model, FAMILY))


def test_a_run_that_goes_on_from_another_has_no_first_steps(tiny, caplog):
    model = tiny.quantized(FAMILY)
    noisy = tiny.sample(model, FAMILY, steps=6, last_step=3)
    how = {"steps": 6, "start_step": 3, "latent": noisy, "noise": torch.zeros_like(noisy)}
    plain = tiny.sample(model, FAMILY, **how)
    lines = said(caplog, lambda: torch.equal(tiny.sample(planned(model, 2), FAMILY, **how), plain))
    assert "did nothing. This run goes on from another one's noise" in lines[0]
    lines = said(caplog, lambda: tiny.sample(planned(model, 0, 2), FAMILY, steps=6, last_step=3))
    assert "did nothing. This run leaves noise to another one" in lines[0]
    assert "ran 2 of 3 steps" in said(caplog, lambda: tiny.sample(planned(model, 0, 2), FAMILY, **how))[0]
    image = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(0))
    lines = said(caplog, lambda: tiny.sample(planned(model, 2), FAMILY, steps=6, denoise=0.5, latent=image))
    assert "ran 2 of 6 steps" in lines[0]


def test_two_plans_add_up(tiny):
    model = tiny.quantized(FAMILY)
    calls, samples = watched(tiny, planned(planned(model, 1), 2, 1), steps=5)
    assert [unrounded for _, unrounded in calls] == [True, True, False, False, True]
    assert torch.equal(samples, tiny.sample(planned(model, 2, 1), FAMILY, steps=5))


def test_it_stacks_with_guidance_clamps_and_the_correction(tiny, caplog):
    """All of them with unrounded activations throughout are all of them on the model that rounds none."""
    from gimbal.nodes.micrograin import GimbalMicrograin
    from gimbal.nodes.qdrift import GimbalQDrift
    from gimbal.nodes.samg import GimbalSAMG

    statistics = sys.modules["tiny_models"].layer_statistics(tiny.model(FAMILY))
    window = {"start_percent": 0.0, "end_percent": 1.0}

    def stacked(model, before=lambda model: model, after=lambda model: model):
        model = before(model)
        how = {"channels": "scalar", "rule": "auto", "variance": "conditional", "bias": "off"}
        model = GimbalQDrift.execute(
            model, statistics, correction="layers", strength=1.0, unsupported="stop with an error", **how, **window
        ).args[0]
        shape = {"normalize": "quantile", "curve": "linear", "scope": "clip", "strength": 1.0}
        model = GimbalSAMG.execute(model, preset="w_min and w_max", w_min=-1.0, w_max=-1.0, **shape, **window).args[0]
        grain = {"form": "smooth", "q_low": 0.02, "q_high": 0.98, "strength": 1.0, "knee": 0.5, "alpha": 2.0}
        return after(GimbalMicrograin.execute(model, **grain, **window).args[0])

    wanted = tiny.sample(stacked(tiny.quantized(FAMILY, activation_bits="off")), FAMILY)
    plain = tiny.sample(stacked(tiny.quantized(FAMILY)), FAMILY)
    assert not torch.equal(plain, wanted)
    for where in ("before", "after"):
        found = stacked(tiny.quantized(FAMILY), **{where: lambda model: planned(model, 3)})
        assert torch.equal(tiny.sample(found, FAMILY), wanted)
        assert left_behind(found) == ([], [])
    part = tiny.sample(stacked(tiny.quantized(FAMILY), after=lambda model: planned(model, 1)), FAMILY)
    assert not torch.equal(part, wanted) and not torch.equal(part, plain)


def test_attention_is_still_read_for_a_stage_beside_it(tiny):
    from gimbal.nodes.aqclip import GimbalAQClip

    how = {"corridor": "strong", "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "tile": 6, "stride": 4}

    def clipped(model):
        return GimbalAQClip.execute(model, ema_beta=0.8, confidence="attention", **how).args[0]

    wanted = tiny.sample(clipped(tiny.quantized(FAMILY, activation_bits="off")), FAMILY)
    assert torch.equal(tiny.sample(planned(clipped(tiny.quantized(FAMILY)), 3), FAMILY), wanted)
