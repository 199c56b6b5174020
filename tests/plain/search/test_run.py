"""The command as a whole, tiny: the budget holds by what is measured, seeds repeat, interruptions go on, refusals work."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re
from pathlib import Path

import distilling
import numpy as np
import pytest
from click.testing import CliRunner

from bertc import build, load
from bertc.cli.search import search as command
from bertc.core import ArtifactError, DataError, InputError
from bertc.distill import Loop
from bertc.search import Request, search, training, trials

QUICK = {
    "multiple": 32,
    "shape": "2x8",
    "threads": 1,
    "trials": 14,
    "steps": 6,
    "finish": 6,
    "batch": 16,
    "precisions": ("fp32",),
}


def request(folder: Path, **more) -> Request:
    given = {**QUICK, **more}
    if "latency" not in given:
        given.setdefault("size", "60kB")
    return Request(str(distilling.teacher()), distilling.text_file(folder / "texts.txt"), **given)


def told(path: Path) -> dict:
    return json.loads((path / "search.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A search under a size, of what a Hugging Face config can hold."""
    folder = tmp_path_factory.mktemp("search")
    return search(request(folder, uniform=True), folder / "out")


def test_the_budget_holds_and_what_is_written_builds(found, tmp_path) -> None:
    document = told(found.path)
    chosen = document["chosen"]
    assert chosen["measured"]["weight_bytes"] <= 60_000 < document["original"]["weight_bytes"]
    assert chosen["form"] == "huggingface"
    build(found.path, tmp_path / "built", targets=["onnxruntime"], precision="fp32")
    stored = json.loads((tmp_path / "built" / "manifest.json").read_text("utf-8"))["graph"]["initializer_bytes"]
    assert stored == chosen["measured"]["weight_bytes"] == pytest.approx(chosen["table"]["weight_bytes"], rel=0.01)
    vectors = load(tmp_path / "built").run(
        {k: np.ones((2, 5), np.int64) for k in ("input_ids", "attention_mask", "token_type_ids")}
    )
    assert next(iter(vectors.values())).shape == (2, 32)


def test_the_document_holds_trials_front_and_what_is_not_searched(found) -> None:
    document = told(found.path)
    assert [each["number"] for each in document["trials"]] == list(range(14))
    best = [document["trials"][number] for number in document["front"]]
    assert all(a["quality"] < b["quality"] and a["weight_bytes"] < b["weight_bytes"] for a, b in itertools.pairwise(best))
    assert document["chosen"]["trial"] in {each["number"] for each in document["trials"] if each["within"]}
    assert document["chosen"]["after"] >= document["chosen"]["before"] or not document["chosen"]["kept"]
    assert "heads" in document["space"]["not_searched"]
    assert {"near the limit 1", "near the limit 2", "below it"} < set(document["supernet"]["losses"][0])
    assert "Quality by cost" in (found.path / "search.html").read_text("utf-8")
    assert not found.path.with_name("out.search").exists()


def facts_of(path: Path) -> dict:
    """What a search found, without what a clock says."""
    document = told(path)
    names = ("before", "after", "kept", "layers", "heads", "ffn", "start", "measured", "table", "trial", "quality")
    chosen = {name: document["chosen"][name] for name in names}
    losses = document["supernet"]["losses"]
    return {"trials": document["trials"], "front": document["front"], "chosen": chosen, "losses": losses}


@pytest.mark.parametrize("where", ["network", "trials"])
def test_resumed_it_finds_what_an_unbroken_search_finds(found, where: str, tmp_path, monkeypatch) -> None:
    asked = request(tmp_path, uniform=True)
    with monkeypatch.context() as broken:
        if where == "network":
            # Of the same settings as the search that goes on, which the checkpoint is held against.
            monkeypatch.setattr(training, "Settings", functools.partial(training.Settings, checkpoint_seconds=0.0))
            stopped_at(broken, step=3)
        else:
            broken.setattr(trials, "run", interrupted)
        with pytest.raises(KeyboardInterrupt, match="--resume"):
            search(asked, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    table = json.loads((tmp_path / "out.search" / "costs.json").read_text("utf-8"))
    for given, match in (({"resume": False}, "--resume"), ({"resume": True, "shape": "4x8"}, "another model, shape")):
        other = dataclasses.replace(asked, shape=given.pop("shape", asked.shape))
        with pytest.raises(ArtifactError, match=match):
            search(other, tmp_path / "out", **given)
    assert json.loads((tmp_path / "out.search" / "costs.json").read_text("utf-8")) == table
    again = search(asked, tmp_path / "out", resume=True)
    assert facts_of(again.path) == facts_of(found.path)
    assert (again.path / "model.safetensors").read_bytes() == (found.path / "model.safetensors").read_bytes()
    assert not (tmp_path / "out.search").exists()


def interrupted(*given) -> None:
    raise KeyboardInterrupt


def stopped_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Training is interrupted before it takes a step."""
    run = Loop._step

    def stopping(self: Loop) -> None:
        if self.found.steps == step:
            raise KeyboardInterrupt
        run(self)

    patch.setattr(Loop, "_step", stopping)


def test_resume_without_a_search_that_stopped(tmp_path) -> None:
    with pytest.raises(ArtifactError, match="leave --resume out"):
        search(request(tmp_path), tmp_path / "out", resume=True)


def test_a_size_for_tensorrt_rtx(tmp_path) -> None:
    """Engines are compiled, counted and not run: nothing has a time."""
    pytest.importorskip("tensorrt_rtx")
    given = {"target": "tensorrt-rtx", "precisions": ("fp16",), "size": "30kB", "uniform": True, "trials": 10, "finalists": 1}
    document = told(search(request(tmp_path, **given), tmp_path / "out").path)
    chosen = document["chosen"]
    assert document["bench"] == {"target": "tensorrt-rtx", "shape": {"batch": 2, "length": 8}, "threads": None}
    assert chosen["precision"] == "fp16" and chosen["measured"]["weight_bytes"] <= 30_000
    assert 0 < chosen["measured"]["kernels"] < document["original"]["kernels"]
    assert chosen["measured"]["kernels"] == pytest.approx(chosen["table"]["kernels"], abs=2)
    assert all(each["milliseconds"] is None for each in (*document["trials"], *document["costs"], chosen["measured"]))
    assert chosen["quality"]["engine"] is None and "does not run here" in chosen["quality"]["engine_why"]


def test_an_impossible_budget_names_the_smallest_that_is_possible(tmp_path) -> None:
    given = [str(distilling.teacher()), "--data", str(distilling.text_file(tmp_path / "t.txt")), "-o", str(tmp_path / "out")]
    words = [*given, "--multiple", "32", "--uniform", "--precision", "fp32", "--shape", "2x8"]
    refused = CliRunner().invoke(command, [*words, "--size", "1kB"])
    assert isinstance(refused.exception, InputError) and refused.exception.exit_code == 2
    told_size = re.search(r"--size ([\d.]+MB) or more", str(refused.exception))[1]
    assert not (tmp_path / "out").exists()
    assert 0.001 < float(told_size.removesuffix("MB")) < 0.06
    assert not (tmp_path / "out.search").exists()


def test_a_budget_that_the_model_keeps_is_nothing_to_search(tmp_path) -> None:
    with pytest.raises(InputError, match="nothing to search"):
        search(request(tmp_path, size="90MB", uniform=True), tmp_path / "out")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"size": None}, "neither"),
        ({"latency": "2ms", "size": "1MB"}, "both"),
        ({"latency": "2ms", "size": None, "target": "tensorrt-rtx"}, "on the CPU alone"),
        ({"target": "tensorrt"}, "tensorrt-rtx"),
        ({"precisions": ("int8",)}, "calibrated"),
        ({"precisions": ("bf16",)}, "known: fp32"),
        ({"trials": 0}, "1 or more"),
        ({"finish": -1}, "0 or more"),
        ({"learning_rate": 2.0}, "1 at most"),
        ({"shape": "8"}, "batch"),
        ({"shape": "2x8,4x8"}, "one shape"),
        ({"shape": "2x4000"}, "length 4000"),
    ],
)
def test_refused(tmp_path, given, words: str) -> None:
    with pytest.raises(InputError, match=words):
        search(request(tmp_path, **given), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_refused_without_texts(tmp_path) -> None:
    with pytest.raises(DataError, match="--data"):
        search(dataclasses.replace(request(tmp_path), data=None), tmp_path / "out")
