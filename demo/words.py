"""Prompts in words, as the picture model reads them: each word becomes hashed features, without a vocabulary or weights.

A word's vector counts the word itself, its character trigrams and its pair with the word before, each hashed to one of
4096 places. The network's first layer, ComfyUI's `text_embedding`, then is the table of learned embeddings. Trigrams let
an unknown word ("cats", "smily") fall near the known ones that it resembles. The pair tells "red on blue" from "blue on
red": attention over words knows no order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from zlib import crc32

import torch
from torch import Tensor

WIDTH = 4096  # what the Wan layout expects of a text encoder
TOKENS = 10  # words of a prompt; more are left out
WORD, PARTS, PAIR = 1.0, 0.7, 0.7  # norms of a word's three groups of features
IGNORED = frozenset({"a", "an", "the", "of", "and", "with", "in"})


def words(prompt: str) -> list[str]:
    """Lower-case words and numbers, without the commonest function words."""
    return [word for word in re.findall(r"[a-z0-9]+", prompt.lower()) if word not in IGNORED]


def encode(prompts: Sequence[str]) -> Tensor:
    """Prompts to context (N, TOKENS, WIDTH), float32. An empty prompt, and places without a word, are zeros."""
    context = torch.zeros(len(prompts), TOKENS, WIDTH)
    for row, prompt in zip(context, prompts, strict=True):
        before = ""
        for token, word in zip(row, words(prompt), strict=False):
            for name, norm in _features(word, before):
                token[_place(name)] += norm
            before = word
    return context


def _features(word: str, before: str) -> list[tuple[str, float]]:
    marked = f"<{word}>"
    parts = [marked[i : i + 3] for i in range(len(marked) - 2)]
    each = PARTS / len(parts) ** 0.5
    return [(f"w {word}", WORD), (f"p {before} {word}", PAIR), *((f"t {part}", each) for part in parts)]


def _place(name: str) -> int:
    return crc32(name.encode()) % WIDTH
