"""Stabilise on models of other kinds than those it was found to help."""

import pytest
import torch

from gimbal.core.stabilise import DEFAULT

OPTIONS = {"amount": 1.0, "models": "flow models only", "start_percent": 0.0, "end_percent": 1.0, **vars(DEFAULT)}


@pytest.fixture
def stabilise(comfy):
    from gimbal.nodes.stabilise import GimbalStabilise

    return lambda model, **changes: GimbalStabilise.execute(model, **{**OPTIONS, **changes}).args[0]


@pytest.mark.parametrize(("family", "acts"), [("sd3", True), ("flux", True), ("sd15", False), ("sd15_v", False)])
def test_it_acts_on_flow_models_unless_told_otherwise(tiny, stabilise, caplog, family, acts):
    caplog.set_level("INFO")
    model = tiny.model(family)
    plain = tiny.sample(model, family)
    assert torch.equal(tiny.sample(stabilise(model), family), plain) is not acts
    assert ("Stabilise: changes nothing: this is no flow model" in caplog.text) is not acts
    assert not torch.equal(tiny.sample(stabilise(model, models="all models"), family), plain)
