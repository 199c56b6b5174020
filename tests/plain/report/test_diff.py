"""bertc inspect A --diff B: what differs is named with both values, and nothing is where nothing differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from bertc.artifact import manifest as artifact
from bertc.cli import _main as cli
from bertc.report import diff

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model as "both" (fp16, fp32), built twice ("again"), without fusions ("plain"); and a retrained one ("other")."""
    place = tmp_path_factory.mktemp("diff")
    model, other = tiny.encoder(place / "m.onnx"), tiny.encoder(place / "other.onnx", changed=0.5)
    half = ("--target", "onnxruntime=fp16")
    run("build", model, *half, "--target", "onnxruntime=fp32", "-o", place / "both")
    run("build", model, *half, "--target", "onnxruntime=fp32", "-o", place / "again")
    run("build", model, *half, "--no-fuse", "-o", place / "plain")
    run("build", other, *half, "-o", place / "other")
    return place


def run(*words: object, code: int = 0) -> None:
    assert cli.run([str(word) for word in words]) == code


def found(a: Path, b: Path) -> dict[tuple[str, str], tuple[Any, Any]]:
    return {(each.section, each.name): (each.a, each.b) for each in diff.compare(a, b)}


def test_two_builds_of_one_model_do_not_differ(folder: Path, capsys: Capture) -> None:
    """Their reports do: times are no difference."""
    a, b = (folder / name / "onnxruntime-fp16" for name in ("both", "again"))
    assert (a / "report.json").read_bytes() != (b / "report.json").read_bytes()
    capsys.readouterr()
    run("inspect", folder / "both", "--diff", folder / "again", "--exit-code", "--json")
    out, err = capsys.readouterr()
    assert "no difference between" in " ".join(err.split())
    assert json.loads(out) == {"a": str(folder / "both"), "b": str(folder / "again"), "same": True, "differences": []}


def test_another_precision(folder: Path, capsys: Capture) -> None:
    a, b = (folder / "both" / f"onnxruntime-{precision}" for precision in ("fp16", "fp32"))
    changed = found(a, b)
    assert changed["precision", "mode"] == ("fp16", "fp32")
    assert changed["precision", "float32 islands"] == (4, 0)
    assert [name for section, name in changed if section == "precision" and name.startswith("island ")]
    assert changed["recipe", "budget.cosine"] == (0.9999, None)
    assert changed["operators", "Cast"][0] > changed["operators", "Cast"][1]
    assert changed["accuracy", "last_hidden_state: relative"][0] > changed["accuracy", "last_hidden_state: relative"][1]
    assert changed["size", "model.onnx, bytes"] == tuple((each / "model.onnx").stat().st_size for each in (a, b))
    assert not [name for section, name in changed if section in ("source", "tools", "passes", "io")]
    capsys.readouterr()
    run("inspect", a, "--diff", b)  # differences are no failure
    text = " ".join(capsys.readouterr().err.split())
    assert "float32 islands 4 0 -100.0%" in text
    run("inspect", a, "--diff", b, "--exit-code", "--json", code=1)
    document = json.loads(capsys.readouterr().out)
    assert document["same"] is False
    islands = {"artifact": "", "section": "precision", "name": "float32 islands", "a": 4, "b": 0, "change": -1.0}
    assert islands in document["differences"]


def test_without_fusions(folder: Path) -> None:
    changed = found(folder / "both" / "onnxruntime-fp16", folder / "plain")
    assert changed["passes", "linear"] == (4, None)
    assert changed["passes", "fusions"] == (None, "none")
    assert changed["recipe", "recipe.fuse"] == (None, False)
    assert ("operators", "all") in changed and ("source", "sha256") not in changed


def test_another_source(folder: Path) -> None:
    changed = found(folder / "both" / "onnxruntime-fp16", folder / "other")
    assert {("source", "sha256"), ("source", "reference"), ("size", "graph.onnx, sha256")} <= set(changed)
    assert ("size", "graph.onnx, bytes") not in changed and ("operators", "all") not in changed


def edited(source: Path, out: Path, change: Any) -> Path:
    """A copy of an artifact whose manifest was changed, with hashes that are right."""
    run("build", source, "--target", "null", "--fp32", "-o", out)
    facts = {k: v for k, v in json.loads((out / "manifest.json").read_text()).items() if k not in ("files", "format")}
    change(facts)
    (out / "manifest.json").unlink()
    artifact.write_manifest(out, facts, {})
    return out


def test_kernels_and_refusals(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    def kernels(*layers: str) -> Any:
        one = {"name": "k", "type": "gemm", "dtype": "Half", "onnx_nodes": []}
        rows = [{**one, "layer": layer, "profile": p} for layer in layers for p in (0, 1)]
        return lambda facts: facts["engine"].update(kernels={"count": len(layers), "layers": [], "rest": {}, "rows": rows})

    a = edited(folder / "m.onnx", tmp_path / "a", kernels("e.layer.0", "e.layer.0", "e.layer.1", ""))
    b = edited(folder / "m.onnx", tmp_path / "b", kernels("e.layer.0", "e.layer.1", ""))
    changed = found(a, b)
    assert changed == {("kernels", "all"): (4, 3), ("kernels", "in e.layer.0"): (2, 1), ("kernels", "gemm Half"): (4, 3)}


def test_islands_of_one_reason_are_folded(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    def islands(count: int) -> Any:
        named = [{"node": f"n{at}", "op": "Softmax", "reason": "sums in float32"} for at in range(count)]
        return lambda facts: facts["precision"].update(islands=named)

    a = edited(folder / "m.onnx", tmp_path / "a", islands(0))
    b = edited(folder / "m.onnx", tmp_path / "b", islands(40))
    capsys.readouterr()
    run("inspect", a, "--diff", b, "--json")
    out, err = capsys.readouterr()
    assert "39 more like it" in " ".join(err.split())
    assert len(json.loads(out)["differences"]) == 41


def test_an_artifact_that_only_one_has(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "one").symlink_to(folder / "plain")
    (tmp_path / "b" / "two").symlink_to(folder / "plain")
    (only,) = diff.compare(tmp_path / "a", tmp_path / "b")
    assert (only.artifact, only.section, only.a, only.b) == ("two", "artifacts", None, "present")


def test_two_onnx_files(folder: Path) -> None:
    graphs = [folder / name / "graph.onnx" for name in ("both/onnxruntime-fp16", "plain")]
    changed = found(*graphs)
    assert ("operators", "all") in changed
    assert found(graphs[0], graphs[0]) == {}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("{f}/both --diff {f}/m.onnx", "cannot be compared"),
        ("{f}/both --diff {f}/none", "is not a bertc artifact"),
        ("{f}/both --diff {f}/plain", "the other a folder of them; compare with one of onnxruntime-fp16, onnxruntime-fp32"),
        ("{f}/both --exit-code", "--exit-code needs --diff"),
    ],
)
def test_errors(folder: Path, words: str, said: str, capsys: Capture) -> None:
    capsys.readouterr()
    run("inspect", *words.format(f=folder).split(), code=2)
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("value", "said"), [(12.5, "+12.5%"), (-100.0, "-100.0%"), (-0.00031, "-0.0003%"), (0.0, "+0%"), (-3.3e27, "-3e+27%")]
)
def test_relative_change(value: float, said: str) -> None:
    assert diff._per_cent(value) == said
