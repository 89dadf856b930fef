"""The picture model's layout in ComfyUI: found to be Wan by its file, asked in words, sampled as the demo samples it."""

from pathlib import Path

import pytest
import torch
from rounding import assert_equal_but_for_rounding, of_run

DEMO = Path(__file__).resolve().parents[2] / "demo"
PROMPTS = ["red heart on black", "pizza"]
STEPS, CFG, SEED = 4, 3.5, 3  # in 4 steps ComfyUI takes of its 1000 levels those of the plain formula


@pytest.fixture
def demo(comfy, monkeypatch):
    monkeypatch.syspath_prepend(str(DEMO))
    import judge_pictures

    return judge_pictures


@pytest.fixture
def file(demo, tmp_path):
    """As training begins."""
    from safetensors.torch import save_file

    import train_pictures

    torch.manual_seed(0)
    path = tmp_path / "pictures.safetensors"
    save_file({name: value.contiguous() for name, value in train_pictures.new_network().state_dict().items()}, path)
    return path


def test_comfyui_finds_wan_in_the_file_and_samples_it_as_the_demo_does(comfy, demo, file, tiny):
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3
    from safetensors.torch import load_file

    import train_pictures
    import words
    from gimbal_demo import latent

    model = comfy.sd.load_diffusion_model(str(file), model_options={"dtype": torch.float32})
    assert type(model.model).__name__ == "WAN21"
    assert len(model.model.diffusion_model.blocks) == train_pictures.BLOCKS
    model = ModelSamplingSD3().patch(model, 3.0)[0]
    noise = torch.randn(2, latent.CHANNELS, 1, 16, 16, generator=torch.Generator().manual_seed(SEED))
    conds = [[[words.encode(prompts), {}]] for prompts in (PROMPTS, ["", ""])]

    def pictures(model):
        found = comfy.sample.sample(
            model, noise, STEPS, CFG, "euler", "simple", *conds, torch.zeros_like(noise), disable_pbar=True, seed=SEED
        )
        return latent.decode(model.get_model_object("latent_format").process_in(found)[:, :, 0])

    network = train_pictures.new_network().eval()
    network.load_state_dict(load_file(file))
    found = pictures(model)
    expected = demo.sample(network, PROMPTS, CFG, STEPS, SEED)
    assert_equal_but_for_rounding(found, expected, of_run(pictures, model, found))
    other = demo.sample(network, [PROMPTS[0], "rocket"], CFG, STEPS, SEED)
    change = (other - expected).abs().amax((1, 2, 3))
    assert change[0] < 1e-3 < 1e-2 < change[1]  # each picture follows its own prompt
