"""The command as a whole: what is written builds and is the compressed module; refusals come before any work."""

from __future__ import annotations

import json

import compressing
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from bertc import build, load
from bertc.cli.compress import compress as command
from bertc.compress import Request, compress, compressed
from bertc.compress.importance import answers
from bertc.core import BertcError, DataError, InputError, Progress
from bertc.distill import tensors


def request(folder, layers: int = 3, **steps) -> Request:
    return Request(str(compressing.checkpoint("bert", layers)), compressing.text_file(folder), multiple=8, **steps)


def test_heads_and_ranks_go_out_as_an_export_that_builds(tmp_path) -> None:
    """ONNX Runtime's engine of it gives what the compressed module gives, and no PyTorch module is needed to build it."""
    asked = request(tmp_path, 2, prune_heads=0.25, low_rank=0.5)
    made = compress(asked, tmp_path / "out", count=False)
    assert made.document["form"] == "export"
    assert (tmp_path / "out" / "manifest.json").is_file()
    build(tmp_path / "out", tmp_path / "built", targets=["onnxruntime"], precision="fp32")
    net = compressed(asked, Progress(), count=False).net
    feeds = compressing.encoded(net).batch(range(5))
    found = load(tmp_path / "built").run(feeds)["last_hidden_state"]
    with torch.no_grad():
        expected = answers(net, tensors(feeds, torch.device("cpu")))[0].numpy()
    real = feeds["attention_mask"].astype(bool)
    np.testing.assert_allclose(found[real], expected[real], rtol=0, atol=2e-5)
    assert made.document["steps"][0]["shape"]["heads"] != made.document["original"]["shape"]["heads"]


def test_layers_and_neurons_are_a_checkpoint_and_a_repair_helps(tmp_path) -> None:
    asked = request(tmp_path, drop_layers=1, prune_ffn=0.25, recover="12")
    both = [compress(asked, tmp_path / name, count=False) for name in ("one", "two")]
    config = json.loads((tmp_path / "one" / "config.json").read_text("utf-8"))
    assert (config["num_hidden_layers"], config["intermediate_size"]) == (2, 48)
    weights = [(each.path / "model.safetensors").read_bytes() for each in both]
    assert weights[0] == weights[1]
    document = json.loads((tmp_path / "one" / "compression.json").read_text("utf-8"))
    assert [each["name"] for each in document["steps"]] == ["drop_layers", "prune_ffn"]
    before, after = (each["quality"]["measures"][0]["value"] for each in (document["steps"][-1], document["recovery"]))
    assert after > before
    assert document["recovery"]["kept"]
    assert (tmp_path / "one" / "compression.html").is_file()
    again = compressing.opened(tmp_path / "one")
    assert compressing.outputs(again).shape[-1] == 32


def test_a_repair_that_makes_it_worse_is_thrown_away(tmp_path, monkeypatch) -> None:
    from bertc.compress import repair

    monkeypatch.setattr(repair, "RATE", 0.5)
    plain = compressed(request(tmp_path, 2, prune_heads=0.25), Progress(), count=False)
    made = compressed(request(tmp_path, 2, prune_heads=0.25, recover="3"), Progress(), count=False)
    found = made.document["recovery"]
    assert not found["kept"]
    assert found["thrown_away"]["measures"][0]["value"] < found["quality"]["measures"][0]["value"]
    assert any("thrown away" in each for each in made.document["notes"])
    torch.testing.assert_close(compressing.outputs(made.net), compressing.outputs(plain.net), rtol=0.0, atol=0.0)


def test_shared_layers_are_stored_once_in_what_is_built(tmp_path) -> None:
    made = compress(request(tmp_path, 2, share_layers="one"), tmp_path / "out", count=False)
    assert made.document["form"] == "huggingface"
    build(tmp_path / "out", tmp_path / "built", targets=["onnxruntime"], precision="fp32")
    stored = json.loads((tmp_path / "built" / "manifest.json").read_text("utf-8"))["graph"]["initializer_bytes"]
    shape = made.document["steps"][0]["shape"]
    assert stored < 4 * shape["parameters"] * 1.05
    assert made.document["original"]["shape"]["parameters"] > 1.3 * shape["parameters"]


def test_the_command_says_what_the_engine_of_less_is(tmp_path) -> None:
    """At batch 8 and length 40, which is all the model takes, a neuron less is 320 x 2 x 2 x 32 FLOPs less."""
    texts, model = compressing.text_file(tmp_path), compressing.checkpoint("bert", 1)
    words = [str(model), "-o", str(tmp_path / "out"), "--prune-ffn", "0.5", "--multiple", "8", "--data", str(texts), "--json"]
    found = CliRunner().invoke(command, words, catch_exceptions=False)
    assert found.exit_code == 0
    document = json.loads(found.stdout)
    first, last = document["original"]["engine"], document["steps"][0]["engine"]
    assert first["flops"] - last["flops"] == 320 * 2 * 2 * 32 * 32
    assert last["weight_bytes"] < first["weight_bytes"]
    assert first["counted"] == last["counted"]
    assert document["steps"][0]["shape"]["ffn"] == [32]


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ({}, "--prune-heads"),
        ({"prune_heads": 0.0}, "between 0 and 1"),
        ({"prune_heads": 1.0}, "between 0 and 1"),
        ({"prune_heads": 0.95}, "0.75 at most"),
        ({"drop_layers": 2, "share_layers": "best"}, "one layer"),
        ({"prune_ffn": float("nan")}, "between 0 and 1"),
        ({"prune_ffn": -0.5}, "between 0 and 1"),
        ({"low_rank": 1.0}, "share of full rank"),
        ({"low_rank": 2.5}, "share of full rank"),
        ({"low_rank": float("inf")}, "share of full rank"),
        ({"drop_layers": 0}, "1 or more"),
        ({"drop_layers": 7}, "1 to 2"),
        ({"share_layers": "men"}, "mean"),
        ({"prune_ffn": 0.5, "recover": "soon"}, "120s"),
        ({"prune_ffn": 0.5, "recover": "0"}, "120s"),
    ],
)
def test_refused(tmp_path, steps, words: str) -> None:
    with pytest.raises(InputError, match=words):
        compress(request(tmp_path, **steps), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_refused_without_texts_and_for_what_is_no_checkpoint(tmp_path) -> None:
    with pytest.raises(DataError, match="--data"):
        compress(Request(str(compressing.checkpoint("bert")), prune_ffn=0.5), tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BertcError):
        compress(Request(str(tmp_path / "empty"), compressing.text_file(tmp_path), prune_ffn=0.5), tmp_path / "out")
