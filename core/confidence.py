"""How certain the model is, place by place: from the gradient of the latent, or from the entropy of attention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .tiles import as_frames, tile_grid, tile_means

FLAT = 1e-30  # keeps 0/0 out of a picture without any gradient
MASKED = -1e30  # a score no key comes back from
MIN_SPREAD = 1e-4  # entropies that differ less than this, as a share of the largest possible one, differ by rounding


@torch.no_grad()
def gradient_confidence(x: Tensor, tile: int = 32, stride: int = 16) -> Tensor:
    """Confidence of each tile from how much structure it holds: g / max(g), g = the tile's mean gradient.

    Source: QSilk Sec. 3.2 (Lite), METHODS.md section 2: Sobel gradient of the mean over channels. The border is
    repeated outwards. A picture without any gradient has confidence 0. Where a gradient is not finite, as around a NaN,
    it counts as 0, so that it reaches no tile but those it lies in.

    Args:
        x: latent or x0 prediction, (B, C, H, W) or (B, C, F, H, W), any float dtype.
        tile, stride: in latent positions, see tile_grid.
    Returns:
        (B, rows, columns), for video (B, F, rows, columns), in [0, 1], float32. Sample b depends on sample b only,
        and each frame on itself only.
    Raises:
        ValueError: x is no float latent of 4 or 5 dimensions, or tile_grid refuses tile or stride.
    """
    frames = as_frames(x)
    grid = tile_grid(x.shape[-2], x.shape[-1], tile, stride)
    g = tile_means(_gradient(frames.mean(2, dtype=torch.float32)), grid)
    g = g / g.amax((-2, -1), keepdim=True).clamp(min=FLAT)
    return g if x.ndim == 5 else g.squeeze(1)


@torch.no_grad()
def entropy_confidence(
    q: Tensor,
    k: Tensor,
    heads: int,
    max_tokens: int = 1024,
    max_heads: int = 4,
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Confidence of each query token from how peaked its attention is.

    Source: QSilk Sec. 3.3 (Attn), METHODS.md section 2: entropy of softmax(q k^T / sqrt(dim)) per query, mean over
    heads, divided by ln(number of keys), stretched to [0, 1] within each sample, and subtracted from 1: low entropy is
    certainty. Where all tokens have the same entropy there is nothing to stretch and the entropy itself is subtracted
    from 1, so attention that is uniform everywhere gives 0 and attention to one key everywhere gives 1.

    A query that is not finite counts as uncertain, 0; a key that is not, as masked. Neither reaches other queries.

    At most max_tokens queries and keys and max_heads heads are looked at, evenly spaced; a token in between gets the
    value of the one that stands for it. That is 2 n m dim operations a head and sample for the n queries and m keys
    looked at.

    Args:
        q: (B, N, heads * dim). k: (B, M, key_heads * dim), key_heads dividing heads (grouped queries). Any float dtype.
        heads: number of query heads.
        max_tokens, max_heads: at least 1.
        mask: broadcastable to (B, heads, N, M) with four dimensions; bool, True where a query may look, or floats to
            add to the scores. Keys that none may look at do not count in the number of keys.
        scale: factor of q k^T instead of 1 / sqrt(dim).
    Returns:
        (B, N) in [0, 1], 1 = certain, float32. Sample b depends on sample b only.
    Raises:
        ValueError: the shapes do not fit each other, heads or the mask, or a limit is below 1.
    """
    key_heads = _check_attention(q, k, heads, max_tokens, max_heads, mask)
    queries = _evenly(q.shape[1], max_tokens, q.device)
    keys = _evenly(k.shape[1], max_tokens, k.device)
    chosen = _evenly(heads, max_heads, q.device)
    q_heads = q[:, queries].unflatten(2, (heads, -1))[:, :, chosen].transpose(1, 2).float()  # (B, h, n, dim)
    k_heads = k[:, keys].unflatten(2, (key_heads, -1))[:, :, chosen * key_heads // heads].transpose(1, 2).float()
    known = q_heads.sum((1, 3)).isfinite()  # (B, n)
    allowed = k_heads.sum(-1).isfinite().unsqueeze(2)  # (B, h, 1, m)
    q_heads, k_heads = (part.nan_to_num(0.0, 0.0, 0.0) for part in (q_heads, k_heads))
    scores = (q_heads @ k_heads.mT) * (scale or 1.0 / math.sqrt(q_heads.shape[-1]))
    if mask is not None:
        for dim, index in ((1, chosen), (2, queries), (3, keys)):
            mask = mask if mask.shape[dim] == 1 else mask.index_select(dim, index)
        allowed = allowed & (mask if mask.dtype == torch.bool else mask > MASKED)
        scores = scores if mask.dtype == torch.bool else scores + mask
    # Not -inf: where a query may look nowhere, every key would be NaN instead of every key alike.
    scores = scores.masked_fill(~allowed, MASKED)
    most_possible = allowed.sum(-1).clamp(min=2).log()  # with one key the entropy is 0, and stays it
    log_p = torch.log_softmax(scores, dim=-1)
    entropy = (-(log_p.exp() * log_p).sum(-1) / most_possible).clamp(max=1.0).mean(1)  # (B, n)

    least = entropy.masked_fill(~known, math.inf).amin(1, keepdim=True)
    most = entropy.masked_fill(~known, -math.inf).amax(1, keepdim=True)
    stretched = (entropy - least) / (most - least).clamp(min=MIN_SPREAD)
    confidence = 1.0 - torch.where(most - least < MIN_SPREAD, entropy, stretched).clamp(0.0, 1.0)
    confidence = confidence.masked_fill(~known, 0.0)
    nearest = torch.arange(q.shape[1], device=q.device) * queries.numel() // q.shape[1]
    return confidence[:, nearest]


def token_grid(
    size: tuple[int, ...], max_tokens: int = 1024, min_frame: int = 64
) -> tuple[list[int], tuple[int, ...]]:
    """An even grid of tokens to look at: row-major indices of at most about max_tokens, and the grid they form.

    Evenly spaced tokens of a flattened picture would lie in few columns; these keep its proportions.

    Args:
        size: (h, w) or (F, h, w) of the token grid. All frames are kept.
        max_tokens: over all frames; each frame keeps min_frame of them all the same, tiles being judged frame by frame.
    Returns:
        Indices into the flattened grid, and (h', w') or (F, h', w').
    """
    *frames, height, width = size
    budget = max(max_tokens // math.prod(frames), min_frame)
    shrink = max(1.0, math.sqrt(height * width / budget))
    rows, columns = (_middles(length, max(1, round(length / shrink))) for length in (height, width))
    starts = [frame * height * width for frame in range(math.prod(frames))]
    return [start + y * width + x for start in starts for y in rows for x in columns], (
        *frames,
        len(rows),
        len(columns),
    )


def tile_confidence(tokens: Tensor, size: tuple[int, int], tile: int = 32, stride: int = 16) -> Tensor:
    """Mean confidence over each tile of a latent, from a map on the token grid.

    Args:
        tokens: (B, h, w) or (B, F, h, w); the tokens share the latent's area evenly between them.
        size: (H, W) of the latent.
        tile, stride: in latent positions, see tile_grid.
    Returns:
        (B, rows, columns) or (B, F, rows, columns), float32: what aqclip takes as confidence.
    Raises:
        ValueError: tokens has other dimensions, or tile_grid refuses size, tile or stride.
    """
    if tokens.ndim not in (3, 4) or tokens.numel() == 0:
        raise ValueError(f"tile_confidence: tokens has shape {tuple(tokens.shape)}; pass (B, h, w) or (B, F, h, w).")
    grid = tile_grid(*size, tile, stride)
    rows = torch.arange(size[0], device=tokens.device) * tokens.shape[-2] // size[0]
    columns = torch.arange(size[1], device=tokens.device) * tokens.shape[-1] // size[1]
    return tile_means(tokens.float().index_select(-2, rows).index_select(-1, columns), grid)


def _gradient(image: Tensor) -> Tensor:
    """Magnitude of the Sobel gradient of (B, F, H, W), times a constant.

    A Sobel kernel is a difference of neighbouring sums of 2 x 2, first taken across and then added down or the other
    way round. Taken diagonally, p and q, they are p - q and p + q, so that squares add up to 2 (p^2 + q^2).
    """
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    sums = padded[..., 1:, :] + padded[..., :-1, :]
    sums = sums[..., 1:] + sums[..., :-1]
    p = sums[..., 1:, 1:] - sums[..., :-1, :-1]
    q = sums[..., 1:, :-1] - sums[..., :-1, 1:]
    return p.square_().addcmul_(q, q).sqrt_().nan_to_num_(0.0, 0.0, 0.0)


def _evenly(count: int, limit: int, device: torch.device) -> Tensor:
    """Indices of at most `limit` of `count` things: the middle one of each of `limit` equal runs."""
    chosen = min(count, limit)
    return (2 * torch.arange(chosen, device=device) + 1) * count // (2 * chosen)


def _middles(count: int, chosen: int) -> list[int]:
    """The same as a list, for `chosen` of `count`."""
    return [(2 * i + 1) * count // (2 * chosen) for i in range(chosen)]


def _check_attention(q: Tensor, k: Tensor, heads: int, max_tokens: int, max_heads: int, mask: Tensor | None) -> int:
    """The number of heads of k."""
    if q.ndim != 3 or k.ndim != 3 or q.shape[0] != k.shape[0] or q.numel() == 0 or k.numel() == 0:
        raise ValueError(
            f"entropy_confidence: q has shape {tuple(q.shape)}, k {tuple(k.shape)}; pass (B, N, heads * dim) for both."
        )
    if heads < 1 or q.shape[2] % heads:
        raise ValueError(f"entropy_confidence: heads is {heads}, q has {q.shape[2]} features; pass a divisor of that.")
    key_heads, rest = divmod(k.shape[2], q.shape[2] // heads)
    if rest or key_heads == 0 or heads % key_heads:
        raise ValueError(
            f"entropy_confidence: k has {k.shape[2]} features, which are no group of heads of {q.shape[2] // heads}; "
            f"pass the k that belongs to q's {heads} heads."
        )
    if max_tokens < 1 or max_heads < 1:
        raise ValueError(
            f"entropy_confidence: max_tokens is {max_tokens}, max_heads {max_heads}; use at least 1 for both."
        )
    full = (q.shape[0], heads, q.shape[1], k.shape[1])
    if mask is not None and (mask.ndim != 4 or any(a not in (1, b) for a, b in zip(mask.shape, full, strict=True))):
        raise ValueError(
            f"entropy_confidence: mask has shape {tuple(mask.shape)}; pass one that broadcasts to {full}."
        )
    return key_heads
