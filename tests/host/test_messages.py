"""What nodes say on the canvas: the text arrives for the right node, at every run, and never ends one."""

import asyncio
import json
import struct
import uuid

import aiohttp
import pytest

MODEL = {"unet_name": "gimbal_letters_fp16.safetensors", "weight_dtype": "default"}
OUTCOMES = {"Helps", "Nothing to repair", "Cannot be repaired"}
PROGRESS_TEXT = 3  # ComfyUI's kind of binary message


def graph(nodes, last, cfg=6.0, seed=1, steps=3):
    """The demo model through `nodes` (id -> (class, inputs)) into a sampler."""
    sampled = {"model": [last, 0], "positive": ["2", 0], "negative": ["2", 1], "latent_image": ["2", 2]}
    sampled |= {
        "seed": seed,
        "steps": steps,
        "cfg": cfg,
        "denoise": 1.0,
        "sampler_name": "euler",
        "scheduler": "simple",
    }
    whole = {
        "1": ("UNETLoader", MODEL),
        "2": ("GimbalDemoLetters", {"text": "G", "rows": 1}),
        **nodes,
        "90": ("KSampler", sampled),
        "91": ("GimbalDemoDecode", {"latent": ["90", 0]}),
        "92": ("PreviewImage", {"images": ["91", 0]}),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in whole.items()}


@pytest.fixture(scope="module")
def defaults(server):
    """`defaults(kind, **inputs)`: a node of the pack, its other widgets as they come."""
    info = server.get("/object_info")

    def defaults(kind, **inputs):
        given = info[kind]["input"]["required"]
        found = {}
        for name, (what, *told) in given.items():
            if isinstance(what, list) or what in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
                options = what if isinstance(what, list) else told[0].get("options")
                found[name] = told[0].get("default", options[0] if options else None)
        return kind, {**found, **inputs}

    return defaults


@pytest.fixture(scope="module")
def texts(server):
    """`texts(graph)`: run it; for each node the texts that it showed, in order."""

    async def listen(graph):
        found, client = {}, uuid.uuid4().hex
        address = f"{server.url}/ws?clientId={client}"
        async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket:
            async with session.post(f"{server.url}/prompt", json={"prompt": graph, "client_id": client}) as answer:
                assert answer.status == 200, await answer.text()
            async for message in socket:
                if message.type is aiohttp.WSMsgType.BINARY:
                    kind, length = struct.unpack(">II", message.data[:8])
                    if kind == PROGRESS_TEXT:
                        node, text = message.data[8 : 8 + length].decode(), message.data[8 + length :].decode()
                        found.setdefault(node, []).append(text)
                elif message.type is aiohttp.WSMsgType.TEXT:
                    event = json.loads(message.data)
                    assert event["type"] != "execution_error", event
                    if event["type"] == "execution_success":
                        return found
        raise AssertionError("the server closed the connection")

    return lambda graph: asyncio.run(asyncio.wait_for(listen(graph), 300))


def test_each_node_says_what_it_did_during_and_after_the_run(texts, defaults):
    found = texts(
        graph(
            {
                "10": defaults("GimbalSAMG", model=["1", 0]),
                "5:11": defaults("GimbalMicrograin", model=["10", 0]),  # as the frontend numbers a node of a subgraph
            },
            "5:11",
        )
    )
    assert set(found) == {"10", "5:11"}
    assert found["10"][0].startswith("acting (scales 2.64 to 6.42 at cfg 6, quantile,")
    assert found["10"][-1].startswith("acted on 3 of 3 model calls (scales 2.64 to 6.42 at cfg 6")
    assert found["5:11"][0].startswith("acting (hard, quantiles 0.001 to 0.999")
    assert found["5:11"][-1].startswith("acted on 3 of 3 model calls (hard, quantiles")


def test_why_a_node_did_nothing_is_on_the_node(texts, defaults):
    nodes = {"10": defaults("GimbalSAMG", model=["1", 0])}
    assert texts(graph(nodes, "10", cfg=1.0))["10"] == [
        "did nothing. At cfg 1, or without a negative, there is no guidance to change; raise cfg above 1."
    ]
    nodes = {"10": defaults("GimbalAQClip", model=["1", 0], strength=0.0)}
    assert texts(graph(nodes, "10", seed=2))["10"] == ["changes nothing: strength is 0"]
    nodes = {"10": defaults("GimbalAQClip", model=["1", 0], start_percent=0.99999)}
    (said,) = texts(graph(nodes, "10", seed=3))["10"]
    assert said.startswith("did nothing. None of this run's 3 model calls lies between start_percent 0.99999 and")


def test_a_cached_model_speaks_again_and_on_its_own_node(texts, defaults):
    """The patched model comes from ComfyUI's cache in the second prompt; in the third another node has the same inputs."""
    clip = defaults("GimbalAQClip", model=["1", 0], corridor="strong")
    assert list(texts(graph({"20": clip}, "20", seed=11))) == ["20"]
    (said,) = texts(graph({"20": clip}, "20", seed=12)).items()
    assert said[0] == "20" and said[1][-1].startswith("acted on 3 of 3")
    assert list(texts(graph({"21": clip}, "21", seed=13))) == ["21"]


def test_a_comparison_says_what_it_samples_and_what_it_found(texts, defaults):
    whole = graph({"50": defaults("GimbalAQClip", model=["1", 0], corridor="strong")}, "1")
    both = {"model": ["50", 0], "plain_model": ["1", 0], "positive": ["2", 0], "negative": ["2", 1]}
    compared = defaults("GimbalEqualStrength", latent_image=["2", 2], **both)
    compared[1].update(seed=31, steps=3, cfg=6.0, max_runs=2, scheduler="simple")
    whole["90"] = dict(zip(("class_type", "inputs"), compared, strict=True))
    found = texts(whole)
    said = found["90"]
    assert said[0] == "sampling model at cfg 6"
    assert said[1] == "sampling plain_model at cfg 6, run 1 of at most 2"
    assert said[2].startswith("sampling plain_model at cfg") and said[2].endswith("run 2 of at most 2")
    assert len(said) == 4 and said[3].startswith(("Plain cfg ", "No plain cfg of the same strength was found in 2"))
    assert found["50"][-1].startswith("acted on 3 of 3 model calls")


def test_latent_nodes_speak(texts, defaults):
    whole = graph({}, "1", seed=21)
    whole["30"] = dict(
        zip(("class_type", "inputs"), defaults("GimbalMicrograinLatent", latent=["90", 0]), strict=True)
    )
    whole["91"]["inputs"]["latent"] = ["30", 0]
    assert texts(whole)["30"][-1].startswith("acted on the latent (hard")


def test_quantization_and_its_correction_speak(texts, defaults):
    """A calibration ends with its verdict; the correction says what was advised, and at other settings that they differ."""
    calibrate = defaults("GimbalQDriftCalibrate", full_model=["1", 0], quantized_model=["40", 0], latent=["2", 2])
    calibrate[1].update(cfg=3.0, steps=3, runs=1, held_out=1, filename="spoken", positive=["2", 0], negative=["2", 1])
    nodes = {
        "40": defaults("GimbalSimulateQuantization", model=["1", 0]),
        "41": calibrate,
        "42": defaults("GimbalQDrift", model=["40", 0], stats=["41", 0], correction="drift"),
    }
    found = texts(graph(nodes, "42", cfg=3.0))
    assert found["40"][-1].startswith("W4A4, groups of 64")
    assert any("recording" in text for text in found["41"]) and found["41"][-1].split(":")[0] in OUTCOMES
    assert found["42"][-1].startswith("euler, path flow")
    (said,) = texts(graph(nodes, "42", cfg=4.0)).values()  # all but the sampler comes from the cache
    assert said[-1].startswith(
        "not as calibrated: cfg 4 instead of 3. The statistics may fit less well.\neuler, path flow"
    )
    nodes["42"][1]["correction"] = "advised"
    said = texts(graph(nodes, "42", cfg=3.0, seed=2))["42"]
    again = texts(graph(nodes, "42", cfg=3.0, seed=3)).get("42")
    assert "advised" in said[0] and (again is None) == ("changes nothing" in said[0])


class Broken:
    """Servers that a text cannot be sent through."""

    def __init__(self, error):
        self.error = error

    def send_progress_text(self, text, node_id, sid=None):
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("Event loop is closed"), TypeError("takes 3 arguments")])
def test_a_server_that_fails_ends_no_run(tiny, caplog, monkeypatch, error):
    import sys
    import types

    from gimbal.host.messages import NodeId, on_node
    from gimbal.host.sampling.hooks import add_stage
    from gimbal.host.sampling.stages import Window
    from gimbal.nodes.micrograin import Limits, MicrograinStage

    broken = types.SimpleNamespace(PromptServer=types.SimpleNamespace(instance=Broken(error)))
    monkeypatch.setitem(sys.modules, "server", broken)
    with pytest.raises(type(error)):  # what is tried does fail
        broken.PromptServer.instance.send_progress_text("", "1")
    on_node(NodeId("1"), "words")
    stage = MicrograinStage("Micrograin", Window(), Limits("hard", 0.1, 0.9, 1.0, 0.8, 2.0), node_id=NodeId("1"))
    caplog.set_level("INFO")
    assert tiny.sample(add_stage(tiny.model("sd3"), stage), "sd3").isfinite().all()
    assert "Micrograin: acted on" in caplog.text


def test_a_text_opens_no_tag_and_is_one_line_a_message(monkeypatch):
    """Some frontends take it for HTML, and a calibration's file may hold anything."""
    import sys
    import types

    from gimbal.host.messages import Messages, NodeId

    sent = []
    server = types.SimpleNamespace(
        client_id="browser", send_progress_text=lambda text, node_id, sid: sent.append((text, node_id, sid))
    )
    monkeypatch.setitem(
        sys.modules, "server", types.SimpleNamespace(PromptServer=types.SimpleNamespace(instance=server))
    )
    messages = Messages("Node", NodeId("7"))
    messages.warning("weights <img src=x onerror=alert(1)> \udcff")
    messages.meanwhile("acting")
    first = "weights \u2039img src=x onerror=alert(1)\u203a \\udcff"
    assert sent == [(first, "7", "browser"), (f"{first}\nacting", "7", "browser")]


def test_a_models_identity_leaves_the_nodes_number_out(tiny):
    """Else a calibration would not go on after the graph was built anew."""
    from gimbal.host.identity import identity, weights_digest
    from gimbal.host.messages import NodeId
    from gimbal.host.sampling.hooks import add_stage
    from gimbal.host.sampling.stages import Window
    from gimbal.nodes.confidence import ConfidenceStage

    model = tiny.model("sd3")
    weights = weights_digest(model)

    def of(number, tile=8):
        stage = ConfidenceStage("Watch", Window(), "gradient", tile, 4, node_id=NodeId(number))
        return identity(add_stage(model, stage), weights)

    assert of("1") == of("22") != of("1", tile=6)
