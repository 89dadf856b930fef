"""README stays short and its links lead somewhere; what the library's page shows as code runs as it stands there."""

import ast
import re
import runpy
from itertools import pairwise
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
LIBRARY, TROUBLESHOOTING = (
    (ROOT / "docs" / f"{name}.md").read_text("utf-8") for name in ("LIBRARY", "TROUBLESHOOTING")
)
MOST_WORDS = 900


def blocks():
    return re.findall(r"```python\n(.*?)```", LIBRARY, re.DOTALL)


def run(code, folder):
    path = folder / "example.py"
    path.write_text(code, encoding="utf-8")
    runpy.run_path(str(path))


def tiny_pipeline():
    """Stable Diffusion 3's pipeline, small and with random weights."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        out_channels=16,
        pos_embed_max_size=16,
    )
    vae = AutoencoderKL(
        latent_channels=16, block_out_channels=(4,), norm_num_groups=2, scaling_factor=1.5, shift_factor=0.06
    )
    nothing = dict.fromkeys(
        ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    )
    pipe = StableDiffusion3Pipeline(
        transformer=transformer.eval(), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae, **nothing
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sampled(pipe, **options):
    generator = torch.Generator().manual_seed(1)
    names = ("prompt_embeds", "pooled_prompt_embeds", "negative_prompt_embeds", "negative_pooled_prompt_embeds")
    shapes = ((2, 8, 32), (2, 32)) * 2
    embeddings = {name: torch.randn(shape, generator=generator) for name, shape in zip(names, shapes, strict=True)}
    given = {**embeddings, "height": 16, "width": 16, "guidance_scale": 5.0, "output_type": "latent"}
    return pipe(**given, generator=torch.Generator().manual_seed(2), **options).images


def test_diffusers_example(monkeypatch, tmp_path):
    """The class as printed, in a real pipeline whose download alone is left out; against Euler written out."""
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("transformers", reason="diffusers' pipeline needs transformers, which comes with ComfyUI")
    from gimbal.core.micrograin import micrograin

    (code,) = [block for block in blocks() if "diffusers" in block]
    assert len(code.splitlines()) <= 24
    pipe = tiny_pipeline()
    plain = sampled(pipe, num_inference_steps=4)
    monkeypatch.setattr(
        diffusers.StableDiffusion3Pipeline, "from_pretrained", classmethod(lambda *args, **kwargs: pipe)
    )
    run(code, tmp_path)
    seen = []
    step = pipe.scheduler.step

    def watched(output, timestep, sample, **options):
        result = step(output, timestep, sample, **options)
        seen.append((sample, output, result[0]))
        return result

    pipe.scheduler.step = watched
    steady = sampled(pipe, num_inference_steps=4)
    assert not torch.equal(steady, plain) and len(seen) == 4
    for (x, output, following), (sigma, end) in zip(seen, pairwise(pipe.scheduler.sigmas), strict=True):
        denoised = micrograin(x - sigma * output, form="smooth")
        torch.testing.assert_close(following, x + (end - sigma) * (x - denoised) / sigma, rtol=1e-5, atol=1e-5)
    assert torch.equal(sampled(pipe, num_inference_steps=4), steady), "nothing is left from one run to the next"


def test_other_examples_run(tmp_path):
    others = [block for block in blocks() if "diffusers" not in block]
    assert others
    for code in others:
        run(code, tmp_path)


def without_targets(text):
    """As it is read: of a link or a picture its words."""
    return re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)


def test_it_is_short():
    words = [word for word in re.findall(r"[^\s|]+", without_targets(README)) if re.search(r"\w", word)]
    assert len(words) <= MOST_WORDS


def test_it_begins_with_the_benefit_and_a_picture():
    """One sentence and one labelled picture; and that no GPU has run it is said before anything is asked of the reader."""
    title, benefit, picture, *_ = README.split("\n\n")
    assert title == "# Gimbal" and re.fullmatch(r"[A-Z][^.]+\.", benefit) and picture.startswith("![")
    assert "**Not yet run on a GPU" in README[: README.index("## ")]


def anchors(text):
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ["README.md", "docs/LIBRARY.md", "docs/TROUBLESHOOTING.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(page):
    path = ROOT / page
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        found = path.parent / file if file else path
        assert found.exists(), target
        assert not anchor or anchor in anchors(found.read_text(encoding="utf-8")), target


def test_methods_are_measured_with_a_link():
    """One sentence a method, each with a link to its rows."""
    (part,) = re.findall(r"## What was measured\n(.*?)\n## ", README, re.DOTALL)
    lines = re.findall(r"^- .*(?:\n  .*)*", part, re.MULTILINE)
    assert len(lines) == 5 and all("](docs/RESULTS.md#" in line for line in lines)


def test_every_template_is_listed():
    """By the words that its name begins with, in italics or bold, and by its model."""
    listed = [" ".join(words.split()) for words in re.findall(r"\*+([^*]+)\*+", README)]
    names = [path.stem for path in (ROOT / "workflows").glob("*.json")]
    assert len(names) > 10
    for name in names:
        assert any(name.startswith(words) for words in listed), name
        assert name.startswith("Try it") or name.rpartition(" - ")[2].split()[0] in README, name


def messages():
    """Every text that the pack's code can say, with "..." for what it fills in."""
    found = []
    for path in sorted(path for folder in ("nodes", "host", "core") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[dgs]", "...", node.value))
    return found


def test_troubleshooting_quotes_what_is_really_said():
    quoted = re.findall(r"^\| `(.*?)` \|", TROUBLESHOOTING, re.MULTILINE)
    assert len(quoted) >= 10
    said = messages()
    for quote in quoted:
        parts = [re.escape(part) for part in quote.split("...")]
        assert any(re.search(".*".join(parts), text) for text in said), quote
