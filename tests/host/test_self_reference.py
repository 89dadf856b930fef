"""A calibration whose reference is the quantized model itself with unrounded activations."""

import pytest
import torch

REFERENCE = "this file with unrounded activations; the weights' own error is not seen"


@pytest.fixture
def run(folders, calibrate, tiny):
    def run(family="sd3", **changes):
        given = {"full_model": None, "quantized_model": tiny.quantized(family), "filename": "self"}
        return calibrate(family, **{**given, **changes})

    return run


def assert_alike(one, other):
    for name in ("sigma", "count", "mean", "m2"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("mode", ["two passes", "interleaved"])
def test_the_reference_is_the_same_weights_with_unrounded_activations(run, calibrate, tiny, mode):
    """What simulated W4A16 is: a model that anyone can connect."""
    found = run(mode=mode)[0]
    wanted = calibrate(full_model=tiny.quantized("sd3", activation_bits="off"), quantized_model=tiny.quantized("sd3"))[
        0
    ]
    assert_alike(found, wanted)
    assert float(found.m2.abs().sum()) > 0
    about = found.provenance
    assert about.reference == REFERENCE and wanted.provenance.reference == ""
    assert about.full_digest == about.quantized_digest


def test_layers_moments_and_the_trial_go_by_it(run, tiny):
    found = run(correction="drift and moments", held_out=1)[0]
    assert found.layers is not None and found.state_sigma is not None and found.trial is not None
    assert found.trial.mean_error(0) > 0


def test_the_file_the_report_and_the_verdict_say_so(run):
    from gimbal.calibration.report import describe, text
    from gimbal.calibration.statistics import QDriftStatistics
    from gimbal.calibration.verdict import verdict

    found, _, path, _ = run()
    loaded = QDriftStatistics.load(path)
    assert loaded.provenance == found.provenance and loaded.provenance.reference == REFERENCE
    assert "weights' own error is not seen" in text(loaded) and "with unrounded activations" in describe(loaded)
    assert verdict(loaded).next_step.endswith(f"Reference: {REFERENCE}.")


def test_statistics_with_and_without_it_do_not_merge(run, calibrate, tiny):
    from gimbal.calibration.provenance import Provenance

    own = run()[0].provenance
    other = calibrate(full_model=tiny.model("sd3"), quantized_model=tiny.quantized("sd3"), first_seed=50)[0].provenance
    from dataclasses import replace

    with pytest.raises(ValueError, match="reference differs"):
        Provenance.merged([own, replace(other, full_digest=own.full_digest)])


def test_the_result_is_used_on_the_model_and_nothing_is_left_on_it(run, tiny):
    from gimbal.nodes.qdrift import GimbalQDrift

    model = tiny.quantized("sd3")
    before = tiny.sample(model, "sd3")
    found = run(quantized_model=model)[0]
    assert torch.equal(tiny.sample(model, "sd3"), before)
    how = {"channels": "scalar", "rule": "auto", "variance": "conditional", "bias": "off"}
    window = {"start_percent": 0.0, "end_percent": 1.0}
    patched = GimbalQDrift.execute(
        model, found, correction="drift", strength=1.0, unsupported="stop with an error", **how, **window
    ).args[0]
    assert not torch.equal(tiny.sample(patched, "sd3"), before)


def test_it_resumes_as_other_calibrations_do(run, tiny):
    import calibrating

    model, calls = calibrating.cancelling(tiny.quantized("sd3"), after=4)  # in the second run of the reference
    with pytest.raises(calibrating.Cancelled):
        run(quantized_model=model)
    found = run(quantized_model=model)[0]
    assert len(calls) == 4 + 3 + 2 * 3
    assert_alike(found, run()[0])


@pytest.mark.parametrize("bits", [None, "off"])
def test_a_model_that_rounds_no_activations_needs_a_full_model(run, tiny, bits):
    model = tiny.model("sd3") if bits is None else tiny.quantized("sd3", activation_bits=bits)
    tiny.sample(tiny.quantized("sd3"), "sd3", steps=1)  # so that another clone's layers are on the network
    with pytest.raises(
        ValueError, match=r"quantized_model rounds no activations here.*connect the model in full precision"
    ):
        run(quantized_model=model)


def test_the_input_is_optional_and_old_workflows_fill_it(comfy):
    from gimbal.nodes.qdrift_calibrate import GimbalQDriftCalibrate
    from gimbal.nodes.qdrift_trajectory import GimbalQDriftRecord

    for node, optional in ((GimbalQDriftCalibrate, True), (GimbalQDriftRecord, False)):
        entry = node.INPUT_TYPES()
        assert ("full_model" in entry.get("optional", {})) == optional
        assert ("full_model" in entry["required"]) != optional
