"""int8 in a fleet: quantised once for all builds that lower alike, the bytes of a single build, and what makes it stale."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import fleets
import pytest

import bertc
from bertc import targets
from bertc.cli import _main as cli
from bertc.core.errors import RecipeError
from bertc.core.files import hash_file
from bertc.core.progress import Progress
from bertc.fleet import config, keys, plan, stages
from bertc.graph.model import load_graph

MATRIX = 'targets = ["onnxruntime", "null"]\nprecisions = ["int8-static"]\n'


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = fleets.low_bit(tmp_path_factory.mktemp("fleet"), MATRIX)
    assert set(fleets.states(fleets.build(found)).values()) == {"made"}
    return found


def stale(path: Path) -> dict[str, tuple[str, ...]]:
    fleet, store = fleets.opened(path)
    return {step.task.slot: step.reasons for step in plan.plan_fleet(fleet, store) if step.state != "cached"}


def test_the_artifact_is_that_of_a_single_build(path: Path, tmp_path: Path) -> None:
    fleet, store = fleets.opened(path)
    built = {step.task.slot: store.folder(str(step.key)) for step in plan.plan_fleet(fleet, store)}
    source, data = path.parent / "a" / "m.onnx", path.parent / "texts.txt"
    alone = tmp_path / "alone"
    bertc.build(source, alone, targets=["onnxruntime=int8-static"], data=data)
    made = built["a/onnxruntime-int8-static"]
    for name in ("graph.onnx", "model.onnx", "goldens.npz"):
        assert hash_file(made / name) == hash_file(alone / name), name
    ours, theirs = (json.loads((folder / "report.json").read_text("utf-8")) for folder in (made, alone))
    assert ours["int8"] == theirs["int8"]
    assert ours["int8"]["data"]["judged"] == 24
    assert ours["verification"] == theirs["verification"]
    assert "onnxruntime-int8-static: quantise" in ours["stages"]


def test_what_lowers_alike_is_quantised_once(tmp_path: Path) -> None:
    gpus = 'gpus = ["l4", "h100", "a100"]\nprecisions = ["int8", "int8-static"]\nper_sm = true\n'
    tasks = plan.tasks(fleets.opened(fleets.low_bit(tmp_path, gpus))[0])
    needs = {task.slot: task.needs.get("quantise") for task in tasks if task.stage == "build"}
    assert needs == {
        "a/tensorrt-rtx-sm89-int8": "a/quantise-tensorrt-rtx-sm89-int8",
        "a/tensorrt-rtx-sm89-int8-static": "a/quantise-tensorrt-rtx-sm89-int8-static",
        "a/h100-int8": "a/quantise-tensorrt-rtx-sm89-int8",
        "a/h100-int8-static": "a/quantise-tensorrt-rtx-sm89-int8-static",
        "a/a100-int8": "a/quantise-tensorrt-rtx-sm89-int8",
        "a/a100-int8-static": "a/quantise-tensorrt-rtx-sm89-int8-static",
    }
    assert [task.slot for task in tasks if task.stage == "quantise"] == sorted({str(need) for need in needs.values()})


def test_a_stage_has_one_name_whichever_entries_are_chosen(tmp_path: Path) -> None:
    """Else `--entry X --locked` finds its stages missing from the lock."""
    text = 'shards = 2\ngpus = ["l4", "h100"]\nprecisions = ["fp16", "int8"]\n'
    fleet = fleets.opened(fleets.low_bit(tmp_path, text))[0]
    slots = [task.slot for task in plan.tasks(config.select(fleet, ["a/h100-int8"]))]
    parts = [f"a/calibrate-tensorrt-rtx-int8-{part}of2" for part in (1, 2)]
    assert slots == ["a/export", "a/fuse", *parts, "a/quantise-tensorrt-rtx-int8", "a/h100-int8"]
    slots = [task.slot for task in plan.tasks(config.select(fleet, ["a/tensorrt-rtx-fp16"]))]
    assert slots == ["a/export", "a/fuse", "a/tensorrt-rtx-fp16"]


def test_another_budget_quantises_apart(tmp_path: Path) -> None:
    text = 'gpus = ["l4", "h100"]\nprecisions = ["int8"]\noverride = [{ gpu = "h100", budget = { max_drop = 0.01 } }]\n'
    tasks = plan.tasks(fleets.opened(fleets.low_bit(tmp_path, text))[0])
    assert [task.slot for task in tasks if task.stage == "quantise"] == [
        "a/quantise-tensorrt-rtx-int8",
        "a/quantise-tensorrt-int8",
    ]


def test_data_makes_it_stale_and_a_compiler_does_not(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = path.parent / "texts.txt"
    kept = texts.read_text("utf-8")
    assert stale(path) == {}
    texts.write_text(kept + "\nmore words")
    assert stale(path) == {
        "a/quantise-onnxruntime-int8-static": ("calibration data changed",),
        "a/quantise-null-int8-static": ("calibration data changed",),
        "a/onnxruntime-int8-static": ("calibration data changed", "after a/export, a/fuse, a/quantise-onnxruntime-int8-static"),
        "a/null-int8-static": ("calibration data changed", "after a/export, a/quantise-null-int8-static"),
    }
    texts.write_text(kept)
    real = keys.machine.versions()
    monkeypatch.setattr(keys.machine, "versions", lambda: real | {"tensorrt_rtx": "9"})
    assert stale(path) == {}


def test_code_that_quantises_is_named_and_is_not_the_builds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = keys.hash_file
    keys._code_hashes.cache_clear()
    monkeypatch.setattr(keys, "hash_file", lambda path: "changed" if path.name == "fit.py" else hashed(path))
    found = stale(path)
    keys._code_hashes.cache_clear()
    assert set(found) == {f"a/{stage}{target}-int8-static" for stage in ("quantise-", "") for target in ("onnxruntime", "null")}
    assert found["a/quantise-null-int8-static"] == ("quant/fit.py changed",)
    assert found["a/null-int8-static"] == ("after a/export, a/quantise-null-int8-static",)


def test_what_was_timed_is_no_part_of_the_result(tmp_path: Path) -> None:
    path = fleets.low_bit(tmp_path, 'targets = ["onnxruntime"]\nprecisions = ["int8"]\n')
    outcomes = fleets.build(path)
    assert set(fleets.states(outcomes).values()) == {"made"}
    store = fleets.opened(path)[1]
    quantised, built = (store.folder(str(outcomes[slot].key)) for slot in ("a/quantise-onnxruntime-int8", "a/onnxruntime-int8"))
    timed = json.loads((quantised / stages.NOTES).read_text("utf-8"))["measured"]
    assert set(timed["candidates"]["forms"]) == {"fp32", "static", "dynamic"}
    assert "ms" not in (quantised / stages.QUANTISED).read_text("utf-8")
    report = json.loads((built / "report.json").read_text("utf-8"))
    assert report["int8"]["candidates"] == timed["candidates"]
    assert report["notes"].count(next(note for note in report["notes"] if "medians of" in note)) == 1


def test_the_fused_graph_is_proven_for_quantised_lowerings_too() -> None:
    proven = [targets.lowerings(build.spec, quantised=build.quantised) for build in stages.every_lowering()]
    for name in ("tensorrt-rtx", "tensorrt", "onnxruntime"):
        for quantised in (False, True):
            assert targets.lowerings(targets.TargetSpec(name), quantised=quantised) in proven
    assert len({table["FusedAttention"] for table in proven}) == 6, (
        "TensorRT's three forms, ONNX Runtime's on the CPU, and its two on CUDA"
    )


def test_a_packed_graph_is_calibrated_and_quantised_by_itself(path: Path) -> None:
    """It has other activations, and another graph: what was made of the padded one is not it."""
    fleet, _ = fleets.opened(path)
    entry = next(entry for entry in fleet.entries if entry.spec.name == "onnxruntime")
    packed = dataclasses.replace(entry.recipe, packed=True)
    for stage in ("calibrate", "quantise", "build"):
        assert keys.options(stage, entry.recipe, entry.spec) != keys.options(stage, packed, entry.spec)
    for stage in ("export", "fuse"):
        assert keys.options(stage, entry.recipe, entry.spec) == keys.options(stage, packed, entry.spec)
    code = keys.environment("quantise", entry.spec, "int8-static")["code"]
    assert {"packing/rewrite.py", "packing/region.py", "targets/_onnxruntime/lower_packed.py"} <= set(code)


def test_the_same_on_any_number_of_cores(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a task of two cores quantises is what one of a single core does."""
    fleet, store = fleets.opened(path)
    steps = {step.task.slot: step for step in plan.plan_fleet(fleet, store)}
    step = steps["a/quantise-null-int8-static"]
    before = {stage: store.folder(str(steps[slot].key)) for stage, slot in step.task.needs.items()}
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    work = stages.StageJob("quantise", dataclasses.replace(step.task.recipe), before)
    stages.run(work, tmp_path, Progress())
    made = store.folder(str(step.key))
    assert hash_file(tmp_path / "graph.onnx") == hash_file(made / "graph.onnx")
    assert load_graph(tmp_path / "graph.onnx").op_counts()["QuantizeLinear"] > 0


def test_what_was_built_in_its_place_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = 'targets = ["null"]\nprecisions = ["int8"]\noverride = [{ precision = "int8", budget = { max_drop = 1e-12 } }]\n'
    path = fleets.low_bit(tmp_path, text)
    assert cli.run(["fleet", "build", str(path), "--json"]) == 0
    told = capsys.readouterr()
    (entry,) = json.loads(told.out)["entries"]
    assert (entry["precision"], entry["built_precision"]) == ("int8", "fp32")
    assert entry["precision_why"]
    assert f"a/null-int8 is fp32: {entry['precision_why']}" in told.err
    assert "begin a/quantise-null-int8" in told.err


def test_the_clock_is_owned_up_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = fleets.low_bit(tmp_path, 'targets = ["onnxruntime"]\nprecisions = ["int8", "int8-dynamic"]\n')
    assert cli.run(["fleet", "plan", str(path)]) == 0
    said = capsys.readouterr().err
    assert "a/quantise-onnxruntime-int8: int8 takes the form that is fastest on the machine" in said
    assert "a/quantise-onnxruntime-int8-dynamic: int8" not in said


def test_calibration_in_parts_gives_the_same_bytes(path: Path) -> None:
    """120 texts, 90 of them calibrate: two blocks, so that the last of three parts has none."""
    whole = fleets.build(path)
    text = path.read_text("utf-8")
    path.write_text("shards = 3\n" + text, "utf-8")
    pool = fleets.Here()
    split = fleets.build(path, pool)
    path.write_text(text, "utf-8")
    assert {outcome.state for outcome in split.values()} <= {"made", "cached"}
    assert {slot for slot in pool.begun if "calibrate" in slot} == {
        f"a/calibrate-{target}-int8-static-{part}of3" for target in ("onnxruntime", "null") for part in (1, 2, 3)
    }
    for target in ("onnxruntime", "null"):
        slot = f"a/quantise-{target}-int8-static"
        assert split[slot].state == "made"
        assert split[slot].digest == whole[slot].digest, "merged exactly: what is behind it need not be built again"
        assert split[f"a/{target}-int8-static"].state == "cached"


def test_parts_are_shared_and_said(tmp_path: Path) -> None:
    text = 'shards = 2\nper_sm = true\ngpus = ["l4", "h100"]\nprecisions = ["int8", "int8-static", "fp8", "int8-weights"]\n'
    tasks = {task.slot: task for task in plan.tasks(fleets.opened(fleets.low_bit(tmp_path, text))[0])}
    parts = [slot for slot, task in tasks.items() if task.stage == "calibrate"]
    assert parts == [f"a/calibrate-tensorrt-rtx-sm89-{kind}-{part}of2" for kind in ("int8", "fp8") for part in (1, 2)]
    assert tasks["a/quantise-tensorrt-rtx-sm89-int8-static"].needs == {
        "export": "a/export", "fuse": "a/fuse", "calibrate 1/2": parts[0], "calibrate 2/2": parts[1]
    }  # fmt: skip
    assert "calibrate 1/2" not in tasks["a/quantise-tensorrt-rtx-sm89-int8-weights"].needs


def test_fp8_for_a_gpu_whose_plan_is_shared_with_an_older_one_says_what_would_do(tmp_path: Path) -> None:
    path = fleets.low_bit(tmp_path, 'gpus = ["l4"]\nprecisions = ["fp8"]\n')
    with pytest.raises(RecipeError, match="per_sm = true, for a plan of sm89 alone"):
        fleets.opened(path)


@pytest.mark.parametrize("given", ["0", "17", "true", '"2"', "1.5"])
def test_shards_are_a_number(tmp_path: Path, given: str) -> None:
    path = fleets.low_bit(tmp_path, f"shards = {given}\n{MATRIX}")
    with pytest.raises(RecipeError, match=r"shards is .*, expected a whole number from 1 to 16"):
        fleets.opened(path)
