"""Dimensions that follow from others (`past + 1`) and rows on other axes than the first, from the factory to the artifact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import steps
import torch

import bertc
from bertc.artifact.goldens import load_goldens
from bertc.core.errors import DataError, RecipeError, SourceError
from bertc.core.profiles import Dim
from bertc.data import Layout, synthetic
from bertc.source.opening import open_source
from bertc.source.size_limits import count_rows
from bertc.source.size_trial import Trial

SIZES = {
    "stacked": [(1, 1), (3, 7)],
    "from_nothing": [(1, 0), (2, 9)],
    "encoder_decoder": [(2, 4)],
    "several_words": [(2, 6)],
    "halves": [(3, 5)],
    "inner": [(2, 4)],
}
BASE = {"halves": "length", "inner": "length"}
RULE = {"several_words": "past + length", "halves": "2*length", "inner": "length - 2"}


@pytest.mark.parametrize("name", SIZES)
def test_a_computed_size_is_exported_and_equals_pytorch(name: str) -> None:
    source, made = open_source(f"steps:{name}"), getattr(steps, name)()
    base = BASE.get(name, "past")
    mask = next(spec for spec in source.graph.inputs if spec.name in ("mask", "inner"))
    assert mask.dims[1] == RULE.get(name, "past + 1")
    assert base in source.dims
    assert mask.dims[1] not in source.dims
    for rows, size in SIZES[name]:
        sizes = {dim: {"length": 3, "source": 6, base: size}.get(dim, rows) for dim in source.dims}
        feeds = synthetic.sample_at(source.graph, source.dims, sizes, kind="right").feeds
        assert feeds[mask.name].shape == mask.shape_at(sizes)
        with torch.no_grad():
            wanted = made.module(**{key: torch.from_numpy(array) for key, array in feeds.items()})
        got = bertc.source.runner_of(source.graph).run(feeds)
        for key, tensor in (wanted if isinstance(wanted, dict) else {"output": wanted}).items():
            np.testing.assert_allclose(got[key], tensor.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ("pats + 1", ("'pats'", "did you mean 'past'")),
        ("past +", ("'past +'", "'past + 1'", "2*length")),
        ("past*past", ("'past*past'", "2*length")),
        ("past // 2", ("'past // 2'", "2*length")),
        ("past + 2", ("past + 2 = 6", "which is 7 for past=5")),
    ],
)
def test_a_wrong_sum_is_explained(mask: str, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"wrong_{abs(hash(mask))}"
    Path(f"{name}.py").write_text(f"import steps\ndef make():\n    return steps.stacked({mask!r})\n")
    with pytest.raises(SourceError) as caught:
        open_source(f"{name}:make")
    assert caught.value.exit_code == 2
    for word in words:
        assert word in str(caught.value)


def test_an_artifact_of_a_stack_runs_every_past(tmp_path: Path) -> None:
    (artifact,) = bertc.build("steps:from_nothing", tmp_path / "out", targets=["onnxruntime"], precision="fp16")
    assert {name: (dim.min, dim.max) for name, dim in artifact.dims.items()} == {"batch": (1, None), "past": (0, 64)}
    runner, made = bertc.load(artifact.path), steps.from_nothing()
    assert Layout.of(runner.inputs, runner.outputs).outputs == {"logits": 0, "present": 1}
    feeds = {"input_ids": np.full((3, 1), 7), "past": np.zeros((4, 3, 2, 0, 16), np.float32), "mask": np.ones((3, 1), np.int64)}
    with torch.no_grad():
        wanted = made.module(**{key: torch.from_numpy(array) for key, array in feeds.items()})
    np.testing.assert_allclose(runner.run(feeds)["present"], wanted["present"].numpy(), atol=1e-2)
    with pytest.raises(DataError, match="past \\+ 1 = 4, which must be 1"):
        runner.run({**feeds, "mask": np.ones((3, 4), np.int64)})
    shapes = {sample.feeds["past"].shape[3] + 1 - sample.feeds["mask"].shape[1] for sample in load_goldens(artifact.goldens)[0]}
    assert shapes == {0}


# An .onnx file, as optimum writes it


@pytest.fixture(scope="module")
def step_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made, path = steps.stacked(), tmp_path_factory.mktemp("step") / "step.onnx"
    rows, past = torch.export.Dim("batch_size"), torch.export.Dim("past_sequence_length")
    shapes = {"input_ids": {0: rows}, "mask": {0: rows, 1: past + 1}, "past": {1: rows, 3: past}}
    torch.onnx.export(made.module, (), kwargs=dict(made.inputs), dynamic_shapes=shapes, dynamo=True, verbose=False).save(path)
    model = onnx.load(path)
    del model.graph.value_info[:]
    onnx.save(model, path)
    return path


def written(path: Path, to: Path, text: str) -> Path:
    model = onnx.load(path)
    model.graph.input[1].type.tensor_type.shape.dim[1].dim_param = text
    onnx.save(model, to)
    return to


def test_a_dim_param_that_is_a_sum_is_tied(step_file: Path, tmp_path: Path) -> None:
    source = open_source(str(written(step_file, tmp_path / "s.onnx", "past_sequence_length+1")))
    assert source.graph.inputs[1].dims == ("batch_size", "past_sequence_length + 1")
    assert {name: (dim.min, dim.max, dim.rows) for name, dim in source.dims.items()} == {
        "batch_size": (1, None, True),
        "past_sequence_length": (1, None, False),
    }
    assert any("past_sequence_length + 1" in note for note in source.notes)


def test_a_sum_under_another_name_is_found_by_running(step_file: Path, tmp_path: Path) -> None:
    path = str(written(step_file, tmp_path / "s.onnx", "total_sequence_length"))
    source = open_source(path)
    assert source.graph.inputs[1].dims == ("batch_size", "past_sequence_length + 1")
    assert any("total_sequence_length = past_sequence_length + 1" in note for note in source.notes)


def test_a_profile_may_ask_for_an_empty_cache_and_for_no_empty_batch(step_file: Path) -> None:
    assert open_source(str(step_file), profiles=["past_sequence_length=0:4:8"]).dims["past_sequence_length"].min == 0
    with pytest.raises(RecipeError, match="batch_size=0:1:2"):
        open_source(str(step_file), profiles=["batch_size=0:1:2"])


def test_a_sum_of_dims_that_no_input_has_is_a_name(step_file: Path, tmp_path: Path) -> None:
    source = open_source(str(written(step_file, tmp_path / "s.onnx", "cached + 1")))
    assert any("cached + 1 is taken for one of its own, cached_1" in note for note in source.notes)


# Several dimensions that count rows


def test_queries_and_candidates_count_rows_and_length_is_measured() -> None:
    source, ran = open_source("steps:ranker"), []

    def run(feeds):
        ran.append(feeds["input_ids"].shape)
        return source.run(feeds)

    assert {name: dim.rows for name, dim in source.dims.items()} == {"queries": True, "candidates": True, "length": False}
    plain = {name: Dim(name) for name in source.dims}
    assert count_rows(Trial(source.graph, plain, run))["candidates"].rows
    assert max(shape[1] for shape in ran) <= 3
    samples = synthetic.synthetic_samples(source.graph, source.dims)
    shapes = {sample.feeds["input_ids"].shape for sample in samples}
    assert max(max(shape[:2]) for shape in shapes) <= 6
    assert {1} < {shape[0] for shape in shapes}
    assert {1} < {shape[1] for shape in shapes}
    right = next(sample.feeds["attention_mask"] for sample in samples if "right padding" in sample.label)
    assert len({tuple(row) for row in right.reshape(-1, right.shape[-1]).tolist()}) > right.shape[0]
    dead = next(sample for sample in samples if sample.dead_rows)
    assert dead.dead_rows == (1,)
    assert dead.feeds["attention_mask"][0].any(-1).all()


def test_windows_of_audio_count_rows() -> None:
    assert {name: dim.rows for name, dim in open_source("steps:windows").dims.items()} == {
        "batch": False,
        "windows": True,
        "length": False,
    }
