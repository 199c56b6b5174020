"""Recipes, targets and profiles: every impossible thing is refused with what was asked, what is known and what to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertc import pipeline, recipe, targets
from bertc.cli import _main as cli
from bertc.core import profiles
from bertc.core.errors import BertcError, Missing, RecipeError
from bertc.core.profiles import Dim, Range
from bertc.recipe import Recipe, choose_targets
from bertc.targets import Availability
from bertc.verification import budget_for


def refused(call: Callable[[], Any], *words: str, kind: type[BertcError] = RecipeError) -> None:
    with pytest.raises(kind) as caught:
        call()
    for word in words:
        assert word in str(caught.value), str(caught.value)


def written(folder: Path, text: str) -> Path:
    path = folder / "r.toml"
    path.write_text(text, encoding="utf-8")
    return path


# The file


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('source = "x"\nprecison = "fp16"', ("unknown key 'precison'", "did you mean 'precision'?")),
        ('source = "x"\nprofile = ["batch=1:1:1"]', ("did you mean 'profiles'?",)),
        ("[build]\nx = 1", ("unknown key 'build'", "known: ")),
        ('task = "features"', ("no source", "hub id")),
        ("source = 3", ("source is 3", "a string")),
        ('source = "x"\ntargets = "onnxruntime"', ("targets is 'onnxruntime'", "a list of strings")),
        ('source = "x"\ntargets = ["null", 3]', ("a list of strings",)),
        ('source = "x"\nverify = "no"', ("verify is 'no'", "true or false")),
        ('source = "x"\nallow_pickle = 1', ("allow_pickle is 1", "true or false")),
        ('source = "x"\nopset = "20"', ("opset is '20'", "a whole number")),
        ('source = "x"\nopset = true', ("opset is True", "a whole number")),
        ('source = "x"\nbudget = "cosine=1"', ("budget is", "a table of numbers")),
        ('source = "x"\nbudget = { cosine = true }', ("budget is", "a table of numbers")),
        ('source = "x"\nopset = 19', ("opset is 19", "20 or newer")),
        ('source = "x"\nids = "int16"', ("ids is 'int16'", "int64 or int32")),
        ('source = "x"\ngoldens = "real"', ("goldens is 'real'", "synthetic or data")),
        ('source = "x"\ngoldens = "data"', ("--data FILE",)),
        ('source = "x"\nprecision = "fp61"', ("unknown precision 'fp61'", "did you mean 'fp16'?")),
        ('source = "x', ("is not TOML",)),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    path = written(tmp_path, text)
    refused(lambda: recipe.read(path), *words)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    refused(lambda: recipe.read(tmp_path / "none.toml"), "cannot read", "it is the recipe", "none.toml", "No such file")
    (tmp_path / "latin.toml").write_bytes(b'source = "caf\xe9"')
    refused(lambda: recipe.read(tmp_path / "latin.toml"), "is not TOML")


def test_every_key_of_a_file(tmp_path: Path) -> None:
    text = """
        source = "some/model"
        task = "features"
        targets = ["onnxruntime=fp16", "null"]
        profiles = ["batch=1:2:4"]
        budget = { cosine = 0.99, rel = 1 }
        verify = false
        opset = 21
        seed = 7
    """
    found = recipe.read(written(tmp_path, text))
    given = {"targets": ("onnxruntime=fp16", "null"), "profiles": ("batch=1:2:4",), "budget": {"cosine": 0.99, "rel": 1}}
    assert found == Recipe("some/model", "features", **given, verify=False, opset=21, seed=7)
    assert found.to_json() == {f.name: getattr(found, f.name) for f in dataclasses.fields(found) if f.name in text}


def test_paths_are_relative_to_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "model.onnx").write_bytes(b"")
    (tmp_path / "texts.txt").write_text("a")
    path = written(tmp_path, 'source = "model.onnx"\ngoldens = "data"\ndata = "texts.txt"')
    monkeypatch.chdir(tmp_path / "here")
    found = recipe.read(path)
    assert (found.source, found.data) == (str(tmp_path / "model.onnx"), str(tmp_path / "texts.txt"))
    assert recipe.read(written(tmp_path, 'source = "org/name"')).source == "org/name"


def test_the_recipes_that_ship_are_valid() -> None:
    assert "minilm" in recipe.names()
    for name, path in recipe.names().items():
        assert recipe.read(path).source, name


# What SOURCE means


def test_a_path_comes_before_a_recipe_before_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found, said = recipe.resolve("minilm")
    assert said == f"recipe minilm: source {found.source}"
    assert found.source != "minilm"
    (tmp_path / "minilm").mkdir()
    found, said = recipe.resolve("minilm")
    assert (found, said) == (Recipe("minilm"), "source: local directory minilm")
    assert recipe.resolve("org/minilm") == (Recipe("org/minilm"), recipe.resolve("org/minilm")[1])
    assert "hub id" in recipe.resolve("org/minilm")[1]
    assert "did you mean 'minilm'" in recipe.resolve("minilmm")[1]
    assert recipe.resolve("my.models:student")[1] == "source: Python factory my.models:student"
    path = written(tmp_path, 'source = "org/name"')
    assert recipe.resolve(str(path)) == (Recipe("org/name"), f"source: recipe file {path}")
    refused(lambda: recipe.resolve("minilmm.toml"), "no recipe file minilmm.toml", "did you mean 'minilm'?")


def seen(monkeypatch: pytest.MonkeyPatch, *words: str) -> Recipe:
    """The recipe that a command line builds."""
    found: list[Recipe] = []

    def stop(given: Recipe, *_: Any, **__: Any) -> None:
        found.append(given)
        raise click.Abort

    monkeypatch.setattr(pipeline, "build_recipe", stop)
    assert cli.run(["build", *words, "-o", "out"]) == 130
    return found[0]


def test_the_command_line_overrides_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ['source = "a/b"', 'precision = "fp32"', 'targets = ["onnxruntime=fp32", "null"]', "seed = 3", "budget = {rel = 1}"]
    path = str(written(tmp_path, "\n".join(lines)))
    assert seen(monkeypatch, path) == recipe.read(Path(path))
    budgets = ("--budget", "cosine=0.9", "--budget", "rel=1e-3")
    found = seen(monkeypatch, path, "--seed", "0", "--no-verify", "--source", "c/d", *budgets)
    assert (found.seed, found.verify, found.budget, found.source) == (0, False, {"cosine": 0.9, "rel": 1e-3}, "c/d")
    assert seen(monkeypatch, path, "--target", "null=bf16").targets == ("null=bf16",)
    typed = seen(monkeypatch, path, "--fp16")  # what is asked for on the command line is not undone by a =fp32 in the file
    assert (typed.precision, typed.targets) == ("fp16", ("onnxruntime", "null"))
    both = seen(monkeypatch, path, "--profile", "batch=1:1:1", "--profile", "batch=2:2:2")
    assert both.profiles == ("batch=1:1:1", "batch=2:2:2")


# Budgets


def test_budgets() -> None:
    assert budget_for("fp16", {"cosine": 0.5}).cosine == 0.5
    assert budget_for("fp16", {"cosine": 0.5}).agreement == budget_for("fp16", {}).agreement
    refused(lambda: budget_for("fp16", {"cosin": 0.5}), "unknown budget 'cosin'", "did you mean 'cosine'?")
    refused(lambda: budget_for("fp32", {"rel": float("nan")}), "rel is not a number")
    unknown = Recipe("x", targets=("null",), budget={"cosin": 1.0})
    refused(lambda: pipeline.plan_builds(unknown), "unknown budget 'cosin'")


# Targets


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("onnxruntim", ("unknown target 'onnxruntim'", "did you mean 'onnxruntime'?")),
        ("tensorrt_rtx", ("did you mean 'tensorrt-rtx'?",)),
        ("", ("unknown target ''", "known: null, onnxruntime")),
        ("tensorrt-rtx:sm8", ("cannot build for 'sm8'", "did you mean 'sm8")),
        ("tensorrt-rtx:sm90", ("cannot build for 'sm90'", "h100", "tensorrt, on a host")),
        ("tensorrt-rtx:sm89,sm89", ("names an SM twice",)),
        ("onnxruntime:sm89", ("onnxruntime takes no SM",)),
        ("_packages", ("unknown target '_packages'",)),
    ],
)
def test_wrong_targets(text: str, words: tuple[str, ...]) -> None:
    refused(lambda: targets.parse_spec(text), *words)


def test_targets() -> None:
    spec = targets.parse_spec("tensorrt-rtx:sm86, sm89=fp16")
    assert (spec.name, spec.sms, spec.precision) == ("tensorrt-rtx", ("sm86", "sm89"), "fp16")
    assert spec.directory_name("fp16") == "tensorrt-rtx-sm86-sm89-fp16"
    assert str(spec) == "tensorrt-rtx:sm86,sm89=fp16"
    assert str(targets.parse_spec("onnxruntime=bf16")) == "onnxruntime=bf16"


@pytest.mark.parametrize("pair", [("null", "null"), ("null=fp16", "null"), ("null", "onnxruntime", "null=fp16")])
def test_a_target_asked_for_twice(pair: tuple[str, ...]) -> None:
    refused(lambda: pipeline.plan_builds(Recipe("x", targets=pair, precision="fp16")), "twice", "null-fp16")


def test_the_precision_of_a_target() -> None:
    plan = pipeline.plan_builds(Recipe("x", targets=("null", "null=fp16", "onnxruntime=fp32"), precision="bf16"))
    assert [build.name for build in plan] == ["null-bf16", "null-fp16", "onnxruntime-fp32"]
    assert pipeline.plan_builds(Recipe("x", targets=("null",)))[0].precision == "fp32"
    refused(
        lambda: pipeline.plan_builds(Recipe("x", targets=("null=fp6",))), "unknown precision 'fp6'", "known: bf16, fp16, fp32"
    )


def machine(monkeypatch: pytest.MonkeyPatch, **builds: bool) -> None:
    """A machine where the named targets build, or say why not."""
    for name, yes in builds.items():
        answer = Availability(yes, yes, "" if yes else f"no {name} here", "1", f"pip install 'bertc[{name}]'")
        monkeypatch.setattr(targets.get(name.replace("_", "-")), "available", lambda answer=answer: answer)


@pytest.mark.parametrize("precision", [None, "fp32", "fp16"])
def test_the_default_target(monkeypatch: pytest.MonkeyPatch, precision: str | None) -> None:
    asked = Recipe("x", precision=precision)
    machine(monkeypatch, tensorrt=True, tensorrt_rtx=True)
    found, why = choose_targets(asked)
    assert (found.targets, found.precision, why) == (("tensorrt",), precision, "target tensorrt: it builds here")
    machine(monkeypatch, tensorrt=False, tensorrt_rtx=True)
    found, why = choose_targets(asked)
    assert (found.targets, found.precision) == (("tensorrt-rtx",), precision)
    assert why == "target tensorrt-rtx: it builds here, tensorrt does not (no tensorrt here)"
    assert choose_targets(Recipe("x", targets=("null",))) == (Recipe("x", targets=("null",)), None)


def test_the_default_target_without_tensorrt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    machine(monkeypatch, tensorrt=False, tensorrt_rtx=False)
    for precision in (None, "fp32"):
        found, why = choose_targets(Recipe("x", precision=precision))
        assert (found.targets, found.precision) == (("onnxruntime",), "fp32")
        assert why == "target onnxruntime: no TensorRT here (tensorrt: no tensorrt here; tensorrt-rtx: no tensorrt_rtx here)"
    for precision in ("fp16", "bf16"):
        asked = Recipe("x", precision=precision)
        refused(lambda asked=asked: choose_targets(asked), precision, "pip install 'bertc[tensorrt_rtx]'", kind=Missing)
    assert cli.run(["build", "minilm", "--source", "x", "--fp16", "--target", "tensorrt", "-o", "out"]) == 3
    assert "target tensorrt cannot build here: no tensorrt here. pip install 'bertc[tensorrt]'" in capsys.readouterr().err


# Profiles

DIMS = {"batch": Dim("batch"), "length": Dim("length", 2, 128)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batch=1:8", ("'batch=1:8' is not NAME=MIN:OPT:MAX", "batch=1:8:32")),
        ("batch=1:8:x", ("three whole numbers",)),
        ("batch=1:8:²", ("three whole numbers",)),
        ("batch=-1:8:9", ("three whole numbers",)),
        ("batch", ("is not NAME=MIN:OPT:MAX",)),
        ("bach=1:8:32", ("'bach'", "did you mean 'batch'?")),
        ("batch=8:1:32", ("batch=8:1:32", "MIN <= OPT <= MAX")),
        ("batch=0:1:32", ("smallest batch", "is 1")),
        ("length=1:8:32", ("smallest length", "is 2")),
        ("length=2:8:129", ("length=2:8:129", "largest length", "is 128")),
        ("batch=1:2:3,batch=1:8:32", ("names 'batch' twice", "--profile twice")),
    ],
)
def test_wrong_profiles(text: str, words: tuple[str, ...]) -> None:
    refused(lambda: profiles.parse_profile(text, DIMS), *words)


def test_defaults_of_profiles() -> None:
    assert profiles.parse_profile("", DIMS) == {"batch": Range(1, 8, 32), "length": Range(2, 128, 128)}
    assert profiles.parse_profile(" length=2:4:8 , ", DIMS) == {"batch": Range(1, 8, 32), "length": Range(2, 4, 8)}
    assert profiles.default_range(Dim("batch", 1, 4)) == Range(1, 4, 4)
    assert profiles.default_range(Dim("length")) == Range(1, 128, 512)
    assert profiles.default_range(Dim("samples", 400)) == Range(400, 64000, 320000), "4 and 20 seconds"
    assert profiles.default_range(Dim("samples", 400, 16000)) == Range(400, 16000, 16000)
    assert profiles.parse_profile("", {}) == {}


sizes = st.integers(1, 2000)


@st.composite
def dims(draw: st.DrawFn) -> Dim:
    low = draw(sizes)
    return Dim(draw(st.sampled_from(["batch", "length", "samples"])), low, draw(st.none() | st.integers(low, 4000)))


@given(dims())
def test_a_default_is_always_a_profile_the_model_takes(dim: Dim) -> None:
    made = profiles.default_range(dim)
    assert profiles.complete_profile({dim.name: made}, {dim.name: dim}) == {dim.name: made}


@given(dims(), st.lists(sizes, min_size=3, max_size=3))
def test_valid_profiles_survive_text_and_json(dim: Dim, numbers: list[int]) -> None:
    top = dim.max or 4000
    low, opt, high = sorted(min(max(n, dim.min), top) for n in numbers)
    found = profiles.parse_profile(f"{dim.name}={low}:{opt}:{high}", {dim.name: dim})
    assert found == {dim.name: Range(low, opt, high)}
    assert profiles.profiles_from_json(profiles.profiles_to_json([found])) == (found,)
