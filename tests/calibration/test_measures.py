"""What people see of a sample's distance to full precision, against plain loops."""

import cmath
import math

import numpy as np
import pytest
import torch

from gimbal.calibration.measures import measured


def pair(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    full = torch.randn(*shape, generator=generator) + 0.3
    return full + 0.2 * torch.randn(*shape, generator=generator) + 0.1, full


def spectrum(plane):
    """Power at each frequency of a plane, by the definition of the transform: [(cycles down, across, power)]."""
    height, width = plane.shape
    found = []
    for u in range(height):
        for v in range(width):
            total = 0j
            for y in range(height):
                for x in range(width):
                    total += plane[y, x] * cmath.exp(-2j * math.pi * (u * y / height + v * x / width))
            down, across = (k if 2 * k < n else k - n for k, n in ((u, height), (v, width)))
            found.append((down, across, abs(total) ** 2))
    return found


def plain(sample, full, weights=None):
    """(error, colour, grain, composition) for each picture, of (B, C, F, H, W) numpy arrays."""
    batch, channels, frames, height, width = full.shape
    variance = np.mean([np.var(full[:, c]) for c in range(channels)])

    def coloured(latent):
        return latent if weights is None else np.einsum("bcfhw,ck->bkfhw", latent, weights)

    def spread(latent, b):
        return sum(np.var(latent[b, c, f]) for c in range(latent.shape[1]) for f in range(frames))

    ours, theirs = coloured(sample), coloured(full)
    contrast = np.mean([spread(theirs, b) / frames for b in range(batch)])
    forms = []
    for b in range(batch):
        coarse = fine = [0.0, 0.0]
        for c in range(channels):
            for f in range(frames):
                parts = (sample[b, c, f], full[b, c, f], sample[b, c, f] - full[b, c, f])
                one, two, apart = (spectrum(part) for part in parts)
                for (u, v, power), (_, _, wanted), (_, _, wrong) in zip(one, two, apart, strict=True):
                    if 0 < math.hypot(u, v) <= 4:
                        coarse = [coarse[0] + wrong, coarse[1] + wanted]
                    if math.hypot(u / height, v / width) >= 0.4 - 1e-12:
                        fine = [fine[0] + power, fine[1] + wanted]
        forms.append((coarse, fine))
    low = np.mean([coarse[1] for coarse, _ in forms])
    found = []
    for b in range(batch):
        moved = 0.0
        for c in range(ours.shape[1]):
            for f in range(frames):
                means = ours[b, c, f].mean() - theirs[b, c, f].mean()
                moved += means**2 + (ours[b, c, f].std() - theirs[b, c, f].std()) ** 2
        error = np.mean((sample[b] - full[b]) ** 2) / variance
        (wrong, _), (power, wanted) = forms[b]
        found.append(
            (
                error,
                math.sqrt(moved / frames / contrast),
                math.log(power / wanted),
                math.sqrt(wrong / low) if low else 0.0,
            )
        )
    return np.array(found)


@pytest.mark.parametrize(
    "shape", [(2, 3, 8, 12), (1, 4, 9, 7), (2, 3, 3, 6, 5), (1, 2, 1, 11), (2, 2, 12), (1, 16, 4, 4)]
)
@pytest.mark.parametrize("decoded", [False, True])
def test_they_are_those_of_a_plain_computation(shape, decoded):
    """Pictures, video, sound with one row and without, a batch of one."""
    sample, full = pair(*shape)
    weights = torch.randn(shape[1], 3, generator=torch.Generator().manual_seed(1)).double()

    def decode(latent):
        return (latent.double().movedim(1, -1) @ weights).movedim(-1, 1)

    found = torch.stack(measured(sample, full, decode if decoded else None), 1)
    rows = (1, shape[2]) if len(shape) == 3 else shape[-2:]
    arrays = [part.double().reshape(*shape[:2], -1, *rows).numpy() for part in (sample, full)]
    np.testing.assert_allclose(found, plain(*arrays, weights.numpy() if decoded else None), rtol=1e-4)


def test_each_sees_its_own_kind_of_harm():
    """Smooth pictures: a shift, a fine checkerboard, another place for the coarse forms."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    full = torch.stack([(2 * math.pi * y / 32).sin(), (2 * math.pi * (x + y) / 32).cos()])[None] + 0.0
    full = full + 0.01 * torch.randn(1, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    board = 0.1 * (1 - 2 * ((x + y) % 2))
    same = measured(full, full)
    assert [float(value) for value in same] == [0.0, 0.0, 0.0, 0.0]
    shifted, grainy, moved = (measured(other, full) for other in (full + 0.2, full + board, full.roll(8, -1)))
    assert float(shifted.colour) > 0.2 and abs(float(shifted.grain)) < 1e-3 and float(shifted.composition) < 1e-6
    assert float(grainy.grain) > 3 and float(grainy.colour) < 0.02 and float(grainy.composition) < 1e-6
    assert float(moved.composition) > 0.5 and float(moved.colour) < 1e-5 and abs(float(moved.grain)) < 1e-6
    assert float(measured(full, full + board).grain) == pytest.approx(-float(grainy.grain), abs=1e-3)


def test_pictures_are_judged_one_by_one():
    sample, full = pair(2, 3, 16, 16)
    sample[0] = full[0]
    found = measured(sample, full)
    assert all(float(value[0]) == 0.0 and float(value[1].abs()) > 0 for value in found)


def test_flat_pictures_have_no_grain_and_no_forms():
    flat = torch.tensor([1.0, 2.0])[:, None, None, None].expand(2, 3, 8, 8)
    found = measured(flat + 0.1, flat)
    assert all(bool(value.isfinite().all()) for value in found)
    assert float(found.grain.abs().max()) < 1e-9 and float(found.composition.max()) == 0.0
    with pytest.raises(ValueError, match="constant"):
        measured(flat, torch.ones(2, 3, 8, 8))


@pytest.mark.parametrize(("one", "two"), [((2, 3, 8, 8), (2, 3, 8, 4)), ((3, 8), (3, 8))])
def test_other_shapes_are_refused(one, two):
    with pytest.raises(ValueError, match="pass two"):
        measured(torch.ones(one), torch.ones(two))
