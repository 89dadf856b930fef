"""What a trial measures with real models: their own way to colours, and the words and card that tell it."""

import dataclasses

import pytest
import torch


def formats():
    """Latent formats of this ComfyUI, one instance of each."""
    import comfy.latent_formats as known

    kinds = [kind for kind in vars(known).values() if isinstance(kind, type) and issubclass(kind, known.LatentFormat)]
    return [kind() for kind in kinds]


class Patcher:
    """As much of a patcher as the decoder asks for."""

    def __init__(self, latent_format):
        self.latent_format = latent_format

    def get_model_object(self, name):
        return getattr(self, name)


def test_every_latent_format_is_decoded_as_previews_do(comfy):
    import latent_preview

    from gimbal.host.latent_decoder import latent_decoder

    decoded = 0
    for latent_format in formats():
        decode = latent_decoder(Patcher(latent_format))
        spatial = (1,) * (latent_format.latent_dimensions - 2) + (4, 6)
        if decode is None or latent_format.latent_dimensions < 2:
            continue
        latent = torch.randn(2, latent_format.latent_channels, *spatial)
        found = decode(latent)
        assert found.shape[:2] == (2, 3) and found.dtype == torch.float64, type(latent_format).__name__
        reshape = getattr(latent_format, "latent_rgb_factors_reshape", None)
        previewer = latent_preview.Latent2RGBPreviewer(
            latent_format.latent_rgb_factors,
            latent_format.latent_rgb_factors_bias,
            *([reshape] if reshape is not None else []),
        )
        picture = torch.tensor(bytearray(previewer.decode_latent_to_preview(latent[:1]).tobytes()), dtype=torch.uint8)
        flat = found[0] if found.ndim == 4 else found[0, :, 0]
        wanted = ((flat + 1) / 2).clamp(0, 1).mul(255).movedim(0, -1).flatten()
        assert float((picture.double() - wanted).abs().max()) <= 1.0, type(latent_format).__name__
        decoded += 1
    assert decoded >= 5


def test_formats_without_factors_have_no_decoder(comfy):
    import comfy.latent_formats as known

    from gimbal.host.latent_decoder import latent_decoder

    assert latent_decoder(Patcher(known.LatentFormat())) is None
    odd = type("Odd", (known.SD15,), {"latent_channels": 7})()
    assert latent_decoder(Patcher(odd)) is None, "factors of another number of channels"


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize(("family", "batch"), [("sd3", 1), ("sd15", 2), ("wan", 1)])
def test_a_calibration_measures_every_held_out_picture(tiny, calibrate, family, batch):
    """With a batch of one, and of video."""
    latent = {"samples": tiny.latent(family, batch=batch)}
    given = {"runs": 1, "held_out": 2, "steps": 2, "latent": latent, "correction": "drift and moments"}
    found, _, path, *_ = calibrate(family, **given)
    seen = found.trial.seen
    assert seen.pictures == 2 * batch and seen.candidates == len(found.trial.candidates)
    for i, error in enumerate(found.trial.error):
        each = [sum(seen.error[i][run * batch : (run + 1) * batch]) / batch for run in range(2)]
        assert each == pytest.approx(error, rel=1e-9)
    assert min(map(min, seen.composition)) > 0 and min(map(min, seen.colour)) > 0
    from gimbal.calibration.statistics import QDriftStatistics

    assert QDriftStatistics.load(path).trial == found.trial


def tried(harm):
    """Statistics whose trial advises layers, unless they harm the grain."""
    from gimbal.calibration.seen import Seen
    from gimbal.calibration.trial import Trial

    grain = ((0.2, 0.2), (0.5 if harm else 0.1, 0.5 if harm else 0.1))
    seen = Seen(((0.09, 0.09), (0.04, 0.04)), ((0.2, 0.2), (0.1, 0.1)), grain, ((0.3, 0.3), (0.3, 0.3)))
    return Trial((("plain", 0.0), ("layers", 1.0)), ((0.09,), (0.04,)), ((0.01,), (0.01,)), seen)


def test_the_card_and_the_report_tell_it_in_plain_words(comfy, tiny):
    import sys

    from gimbal.calibration.verdict import Outcome, verdict
    from gimbal.core.layer_correction import LayerOffsets
    from gimbal.core.places import Place
    from gimbal.host.pictures.card import COLOURS, card
    from gimbal.nodes.qdrift_files import GimbalQDriftReport

    plain = sys.modules["tiny_models"].statistics(tiny.model("sd3"))
    places = Place("a", 0, 4, -1), Place("b", 0, 4, -1)
    layers = LayerOffsets(places, torch.tensor([0.0], dtype=torch.float64), torch.ones(1, 8).bfloat16())
    stats = dataclasses.replace(plain, layers=layers, trial=tried(harm=False))
    found = verdict(stats)
    assert found.outcome is Outcome.HELPS and "'layers' (each layer's mean error, inside the network)" in found.line
    assert "takes away 33 % of the final latent's error: 30 % to 20 %" in found.line
    assert found.seen == (
        "+ Colours and contrast: 20 % off, now 10 %",
        "+ Grain: 22 % too much, now 11 % too much",
        "= Composition: 30 % off, now 30 %",
    )
    assert found.cost == "Costs in each step: an addition at 2 places inside the network; no further model call."
    image = card(found, None)[0]
    for outcome, rows in ((Outcome.HELPS, image[80:]), (Outcome.HELPS, image[:70])):
        colour = torch.tensor(COLOURS[outcome]) / 255
        assert bool(((rows - colour).abs() < 0.01).all(-1).any()), "marked lines are drawn in their colour"
    text = GimbalQDriftReport.execute(stats).args[1]
    assert text.startswith("\n".join([f"{found.line} {found.next_step}", *found.seen, found.cost]))

    harmed = verdict(dataclasses.replace(stats, trial=tried(harm=True)))
    assert harmed.outcome is Outcome.CANNOT and harmed.seen == ()
    assert "'layers' lowers the error but makes grain clearly worse" in harmed.line
