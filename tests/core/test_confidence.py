"""Confidence maps against plain loops, and at their two ends."""

import math
from itertools import pairwise, product

import pytest
import torch
import torch.nn.functional as F

from gimbal.core.confidence import entropy_confidence, gradient_confidence, tile_confidence, token_grid


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradient_by_convolution(picture, tile, stride):
    """(C, H, W) whose size tile and stride divide, so that torch's own pooling has the same tiles."""
    image = F.pad(picture.mean(0)[None, None], (1, 1, 1, 1), mode="replicate")
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    across, down = F.conv2d(image, torch.stack((sobel, sobel.T)).unsqueeze(1))[0]
    g = F.avg_pool2d((across**2 + down**2).sqrt()[None, None], tile, stride)[0, 0]
    return g / g.max()


class TestGradient:
    @pytest.mark.parametrize("layout", [(64, 96, 32, 16), (12, 20, 4, 2), (13, 9, 5, 4), (20, 20, 4, 4)])
    def test_equals_sobel_and_average_pooling(self, layout):
        height, width, tile, stride = layout
        x = noise(2, 3, height, width)
        x[..., width // 2 :] *= 3.0
        result = gradient_confidence(x, tile, stride)
        for b in range(2):
            torch.testing.assert_close(result[b], gradient_by_convolution(x[b], tile, stride), atol=1e-5, rtol=1e-5)
        assert result.amin() < 0.9

    def test_an_edge_by_hand(self):
        # One step of height 1 between columns 7 and 8: the Sobel response is 4 in those two columns, 0 elsewhere.
        # Tiles of 8 columns every 4: 0-7 and 8-15 hold one of the two columns, 4-11 both.
        x = torch.zeros(1, 1, 8, 16)
        x[..., 8:] = 1.0
        assert gradient_confidence(x, 8, 4).tolist() == [[[0.5, 1.0, 0.5]]]

    def test_sizes_that_tiles_do_not_divide_are_covered(self):
        x = torch.zeros(1, 1, 13, 9)
        x[..., 12, :] = 1.0  # an edge that only the last row of tiles holds: rows 0-3, 3-6, 6-9, 9-12
        result = gradient_confidence(x, 4, 3)
        assert result.shape == (1, 4, 3)
        assert (result[0, :3] == 0).all() and (result[0, 3] == 1).all()

    def test_a_flat_picture_has_none(self):
        assert torch.equal(gradient_confidence(torch.full((2, 4, 20, 20), 0.1), 8, 4), torch.zeros(2, 4, 4))

    def test_samples_and_frames_do_not_mix(self):
        x = noise(2, 3, 4, 24, 40) * torch.tensor([1.0, 5.0, 0.2, 1.0]).view(4, 1, 1)
        result = gradient_confidence(x, 8, 4)
        assert result.shape == (2, 4, 5, 9)
        for b in range(2):
            for f in range(4):
                torch.testing.assert_close(result[b, f], gradient_confidence(x[b : b + 1, :, f], 8, 4)[0])

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_every_float_type_is_computed_in_float32(self, dtype):
        x = noise(1, 4, 24, 24).to(dtype)
        result = gradient_confidence(x, 8, 4)
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, gradient_confidence(x.float(), 8, 4))

    def test_what_is_no_latent_is_refused(self):
        with pytest.raises(ValueError, match="as_frames: x is"):
            gradient_confidence(torch.zeros(5))
        with pytest.raises(ValueError, match="tile_grid: stride is 9"):
            gradient_confidence(torch.zeros(1, 1, 20, 20), 8, 9)


def entropies(q, k, heads, queries, keys, chosen):
    """Mean entropy of each chosen query, as a share of the largest possible one, head by head in float64."""
    dim = q.shape[2] // heads
    total = torch.zeros(q.shape[0], len(queries), dtype=torch.float64)
    for head in chosen:
        part = slice(head * dim, (head + 1) * dim)
        scores = q[:, queries, part].double() @ k[:, keys, part].double().transpose(1, 2) / math.sqrt(dim)
        p = scores.softmax(-1)
        total -= (p * p.log()).sum(-1) / len(chosen)
    return total / math.log(len(keys))


def stretched(entropy):
    least, most = entropy.min(1, keepdim=True).values, entropy.max(1, keepdim=True).values
    return (1.0 - (entropy - least) / (most - least)).float()


class TestEntropy:
    def test_equals_plain_softmax(self):
        q, k = 2.0 * noise(2, 50, 3 * 8), noise(2, 50, 3 * 8, seed=1)
        expected = stretched(entropies(q, k, 3, range(50), range(50), range(3)))
        torch.testing.assert_close(entropy_confidence(q, k, 3), expected, atol=1e-5, rtol=1e-5)

    def test_sub_sampling_by_hand(self):
        # 12 tokens, 3 looked at: the middle ones of runs of 4 are 2, 6, 10, and each stands for its run.
        # 4 heads, 2 looked at: 1 and 3. 7 keys, 3 looked at: 1, 3, 5.
        q, k = 2.0 * noise(2, 12, 4 * 8), noise(2, 7, 4 * 8, seed=1)
        expected = stretched(entropies(q, k, 4, [2, 6, 10], [1, 3, 5], [1, 3])).repeat_interleave(4, dim=1)
        result = entropy_confidence(q, k, 4, max_tokens=3, max_heads=2)
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)

    def test_a_count_that_sub_sampling_does_not_divide_is_repeated_back_evenly(self):
        q = 3.0 * noise(1, 11, 8)
        result = entropy_confidence(q, q, 1, max_tokens=4)[0]
        values, runs = result.unique_consecutive(return_counts=True)
        assert len(values) == 4 and sorted(runs.tolist()) == [2, 3, 3, 3]

    def test_grouped_keys_serve_their_query_heads(self):
        q, k = noise(2, 20, 4 * 8), noise(2, 20, 2 * 8, seed=1)
        repeated = k.unflatten(2, (2, 8)).repeat_interleave(2, dim=2).flatten(2)
        torch.testing.assert_close(entropy_confidence(q, k, 4), entropy_confidence(q, repeated, 4))

    def test_peaky_is_one_and_uniform_is_zero(self):
        k = torch.eye(16).unsqueeze(0)
        q = torch.cat((1e4 * k[:, :8], torch.zeros(1, 8, 16)), dim=1)  # 8 tokens sure of one key, 8 without preference
        assert entropy_confidence(q, k, 1).tolist() == [[1.0] * 8 + [0.0] * 8]

    def test_equal_entropies_are_not_stretched(self):
        k = torch.eye(16).repeat(3, 1, 1)
        q = torch.stack((torch.zeros(16, 16), 1e4 * torch.eye(16), 8.0 * torch.eye(16)))
        # The third: score 8 / 4 = 2 for one key, 0 for the 15 others.
        p = torch.tensor([math.exp(2.0)] + [1.0] * 15) / (math.exp(2.0) + 15.0)
        between = 1.0 + (p * p.log()).sum().item() / math.log(16.0)
        result = entropy_confidence(q, k, 1)
        expected = torch.tensor([0.0, 1.0, between]).view(3, 1).expand(3, 16)
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)

    def test_one_key_is_certain(self):
        assert torch.equal(entropy_confidence(noise(1, 6, 8), noise(1, 1, 8), 2), torch.ones(1, 6))

    def test_samples_do_not_depend_on_each_other(self):
        q, k = 2.0 * noise(2, 40, 16), noise(2, 40, 16, seed=1)
        apart = torch.cat([entropy_confidence(q[b : b + 1], k[b : b + 1], 2) for b in range(2)])
        torch.testing.assert_close(entropy_confidence(q, k, 2), apart, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_narrow_types_are_computed_in_float32(self, dtype):
        q, k = (200.0 * noise(1, 40, 16)).to(dtype), (200.0 * noise(1, 40, 16, seed=1)).to(dtype)  # q k overflows half
        assert torch.equal(entropy_confidence(q, k, 2), entropy_confidence(q.float(), k.float(), 2))

    @pytest.mark.parametrize(
        ("q", "k", "options", "message"),
        [
            ((2, 8, 16), (1, 8, 16), {"heads": 2}, r"q has shape \(2, 8, 16\), k \(1, 8, 16\)"),
            ((8, 16), (8, 16), {"heads": 2}, "q has shape"),
            ((1, 8, 16), (1, 8, 16), {"heads": 3}, "heads is 3, q has 16"),
            ((1, 8, 16), (1, 8, 12), {"heads": 2}, "k has 12 features"),
            ((1, 8, 16), (1, 8, 12), {"heads": 4}, "k has 12 features"),
            ((1, 8, 16), (1, 8, 16), {"heads": 2, "max_tokens": 0}, "max_tokens is 0"),
            ((1, 8, 16), (1, 8, 16), {"heads": 2, "max_heads": 0}, "max_heads 0"),
            ((1, 8, 16), (1, 8, 16), {"heads": 2, "mask": torch.ones(8, 8)}, r"mask has shape \(8, 8\)"),
            ((1, 8, 16), (1, 8, 16), {"heads": 2, "mask": torch.ones(1, 1, 8, 7)}, r"broadcasts to \(1, 2, 8, 8\)"),
        ],
    )
    def test_bad_arguments_are_refused(self, q, k, options, message):
        with pytest.raises(ValueError, match=f"entropy_confidence: .*{message}"):
            entropy_confidence(torch.zeros(q), torch.zeros(k), **options)


class TestMasks:
    @pytest.mark.parametrize("shape", [(2, 1, 1, 9), (1, 4, 7, 9), (2, 4, 7, 9)])
    def test_masked_keys_are_as_if_they_were_not_there(self, shape):
        """Against a loop over samples, heads and queries with the other keys cut out."""
        q, k = 2.0 * noise(2, 7, 4 * 8), noise(2, 9, 4 * 8, seed=1)
        mask = torch.rand(shape, generator=torch.Generator().manual_seed(2)) > 0.4
        mask[..., :2] = True  # at least two keys for every query
        full = mask.expand(2, 4, 7, 9)
        entropy = torch.zeros(2, 7)
        for b, h, i in product(range(2), range(4), range(7)):
            part = slice(8 * h, 8 * h + 8)
            keys = k[b, full[b, h, i], part].double()
            p = torch.softmax(keys @ q[b, i, part].double() / math.sqrt(8.0), 0)
            entropy[b, i] -= float((p * p.log()).sum() / math.log(len(keys))) / 4
        low, high = entropy.amin(1, keepdim=True), entropy.amax(1, keepdim=True)
        expected = 1.0 - (entropy - low) / (high - low)
        torch.testing.assert_close(entropy_confidence(q, k, 4, mask=mask), expected, atol=1e-5, rtol=0)
        additive = torch.zeros(shape).masked_fill(~mask, -torch.inf)
        torch.testing.assert_close(entropy_confidence(q, k, 4, mask=additive), expected, atol=1e-5, rtol=0)

    def test_additive_masks_shift_the_scores(self):
        q, k = 2.0 * noise(1, 7, 8), noise(1, 9, 8, seed=1)
        bias = noise(1, 1, 7, 9, seed=2)
        p = torch.softmax(q @ k.mT / math.sqrt(8.0) + bias[0], -1)
        expected = stretched(-(p * p.log()).sum(-1) / math.log(9.0))
        torch.testing.assert_close(entropy_confidence(q, k, 1, mask=bias), expected, atol=1e-5, rtol=0)

    def test_sub_sampling_takes_the_masks_rows_and_columns_along(self):
        q, k = 2.0 * noise(1, 12, 4 * 8), noise(1, 12, 4 * 8, seed=1)
        mask = torch.rand(1, 4, 12, 12, generator=torch.Generator().manual_seed(2)) > 0.3
        chosen, heads = [2, 6, 10], [1, 3]
        few = mask[:, heads][:, :, chosen][..., chosen]
        part = lambda x: x[:, chosen].unflatten(2, (4, 8))[:, :, heads].flatten(2)  # noqa: E731
        expected = entropy_confidence(part(q), part(k), 2, mask=few).repeat_interleave(4, dim=1)
        torch.testing.assert_close(entropy_confidence(q, k, 4, 3, 2, mask=mask), expected)

    def test_a_query_that_may_look_nowhere_is_finite(self):
        mask = torch.ones(1, 1, 6, 6, dtype=torch.bool)
        mask[..., 2, :] = False
        result = entropy_confidence(3.0 * noise(1, 6, 8), noise(1, 6, 8, seed=1), 1, mask=mask)
        assert result.isfinite().all() and result[0, 2] == 0.0

    def test_scale_takes_the_place_of_the_root(self):
        q, k = noise(1, 9, 16), noise(1, 9, 16, seed=1)
        torch.testing.assert_close(entropy_confidence(q, k, 1, scale=1.0), entropy_confidence(4.0 * q, k, 1))


class TestTokenGrid:
    @pytest.mark.parametrize("size", [(64, 64), (45, 80), (104, 152), (128, 32)])
    def test_an_image_keeps_its_proportions_and_the_budget(self, size):
        indices, (rows, columns) = token_grid(size)
        assert len(indices) == rows * columns and 800 <= len(indices) <= 1100
        assert rows / columns == pytest.approx(size[0] / size[1], rel=0.1)
        ys, xs = zip(*(divmod(i, size[1]) for i in indices), strict=True)
        for places, side in ((sorted(set(ys)), size[0]), (sorted(set(xs)), size[1])):
            gaps = [b - a for a, b in pairwise(places)]
            assert max(gaps) - min(gaps) <= 1 and places[0] <= max(gaps) and side - 1 - places[-1] <= max(gaps)

    def test_small_grids_are_taken_whole(self):
        assert token_grid((3, 4)) == (list(range(12)), (3, 4))

    def test_every_frame_of_a_video_keeps_its_share(self):
        indices, (frames, rows, columns) = token_grid((21, 45, 80))
        assert frames == 21 and 50 <= rows * columns <= 80
        one_frame = indices[: rows * columns]
        assert indices == [f * 45 * 80 + i for f in range(21) for i in one_frame]


class TestTokensToTiles:
    @pytest.mark.parametrize(("size", "patch"), [((64, 96), 2), ((48, 64), 4), ((32, 32), 1)])
    def test_each_tile_gets_the_mean_of_its_tokens(self, size, patch):
        tokens = noise(2, size[0] // patch, size[1] // patch).sigmoid()
        expected = F.avg_pool2d(tokens, 16 // patch, 8 // patch)
        torch.testing.assert_close(tile_confidence(tokens, size, 16, 8), expected)

    def test_uneven_sizes_cover_every_token(self):
        # 13 x 9 positions in patches of 2 are 7 x 5 tokens; each must weigh in somewhere.
        for i in range(7):
            for j in range(5):
                tokens = torch.zeros(1, 7, 5)
                tokens[0, i, j] = 1.0
                assert tile_confidence(tokens, (13, 9), 4, 3).sum() > 0

    def test_tokens_larger_than_tiles(self):
        # 2 x 2 tokens on 8 x 8: each is a quarter. Tiles of 4 every 2: the middle one holds all four in equal parts.
        tokens = torch.tensor([[[0.0, 1.0], [0.5, 0.5]]])
        expected = [[[0.0, 0.5, 1.0], [0.25, 0.5, 0.75], [0.5, 0.5, 0.5]]]
        assert tile_confidence(tokens, (8, 8), 4, 2).tolist() == expected

    def test_video_is_pooled_frame_by_frame(self):
        tokens = noise(2, 3, 8, 6).half()
        result = tile_confidence(tokens, (16, 12), 8, 4)
        assert result.shape == (2, 3, 3, 2) and result.dtype == torch.float32
        for f in range(3):
            torch.testing.assert_close(result[:, f], tile_confidence(tokens[:, f], (16, 12), 8, 4))

    def test_a_flat_sequence_is_refused(self):
        with pytest.raises(ValueError, match=r"tile_confidence: tokens has shape \(2, 48\)"):
            tile_confidence(torch.zeros(2, 48), (16, 12))
