"""A fleet of tiny models: each stage once, why a stage is stale, failures, the lock, and what `bertc build` would have made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import fleets
import pytest
import tiny

from bertc.cli import _main as cli
from bertc.core import machine
from bertc.core.errors import CheckFailed, InputError, Missing
from bertc.core.files import hash_file
from bertc.fleet import code, config, keys, lock, outputs, plan, status
from bertc.fleet import critical_path as order
from bertc.fleet.local import LocalPool
from bertc.fleet.plan import Step
from bertc.fleet.ray import RayPool
from bertc.fleet.run import worst_exit_code

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return fleets.write(tmp_path)


HELPERS = Path(fleets.__file__).parent


def steps(path: Path) -> dict[str, Step]:
    fleet, store = fleets.opened(path)
    return {step.task.slot: step for step in plan.plan_fleet(fleet, store)}


def place(path: Path) -> config.Fleet:
    """Build, put into place, and lock."""
    fleet, store = fleets.opened(path)
    outcomes = list(fleets.build(path).values())
    for outcome in outcomes:
        if outcome.task.entry and outcome.key:
            outputs.place(store, outcome.key, fleet.out / outcome.task.slot)
    lock.write(fleet, store, outcomes, fleet)
    return fleet


def test_one_export_and_one_fusion_a_model(tmp_path: Path) -> None:
    pool = fleets.Here()
    path = fleets.write(tmp_path, "ab", 'targets = ["onnxruntime", "null"]\nprecisions = ["fp32", "fp16"]\n')
    outcomes = fleets.build(path, pool)
    assert set(fleets.states(outcomes).values()) == {"made"}
    assert sorted(pool.begun) == sorted(outcomes)
    assert len(outcomes) == 2 * (2 + 4)
    again = fleets.Here()
    assert set(fleets.states(fleets.build(path, again)).values()) == {"cached"}
    assert again.begun == []


def test_the_artifacts_are_those_of_a_single_build(tmp_path: Path) -> None:
    path = fleets.write(tmp_path, "a", 'targets = ["onnxruntime"]\nprecisions = ["fp32", "fp16"]\n')
    fleet = place(path)
    source, out = str(tmp_path / "a" / "m.onnx"), tmp_path / "alone"
    assert cli.run(["build", source, "--target", "onnxruntime=fp32", "--target", "onnxruntime=fp16", "-o", str(out)]) == 0
    for precision in ("fp32", "fp16"):
        made, alone = fleet.out / "a" / f"onnxruntime-{precision}", out / f"onnxruntime-{precision}"
        for name in ("graph.onnx", "model.onnx", "goldens.npz"):
            assert hash_file(made / name) == hash_file(alone / name), (precision, name)
        ours, theirs = (json.loads((folder / "manifest.json").read_text("utf-8")) for folder in (made, alone))
        errors = [[each.pop("error") for each in manifest["passes"]["applied"]] for manifest in (ours, theirs)]
        assert ours["passes"] == theirs["passes"]
        assert all(of_all >= of_one for of_all, of_one in zip(*errors, strict=True)), "a fleet proves for every target's lowering"
        assert ours["passes"]["counts"]["skip_layernorm"] == 1
        ours, theirs = (json.loads((folder / "report.json").read_text("utf-8")) for folder in (made, alone))
        assert ours["export_check"] == theirs["export_check"]
        assert ours["verification"] == theirs["verification"]


def test_a_gpu_that_a_plan_covers_builds_nothing(tmp_path: Path) -> None:
    before = fleets.opened(fleets.write(tmp_path, "a", 'gpus = ["l4"]\nprecisions = ["fp16"]\n'))[0]
    after = fleets.opened(fleets.write(tmp_path, "a", 'gpus = ["l4", "rtx-4090", "t4"]\nprecisions = ["fp16"]\n'))[0]
    ours = {task.slot: keys.environment(task.stage, task.spec, task.recipe.precision) for task in plan.tasks(before)}
    now = {task.slot: task for task in plan.tasks(after)}
    assert set(now) - set(ours) == {"a/tensorrt-rtx-sm75-fp16"}
    assert all(now[slot].recipe == task.recipe for slot, task in ((t.slot, t) for t in plan.tasks(before)))


# Why a stage is stale


def test_reasons(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert steps(file)["a/export"].reasons == ("never made",)
    assert steps(file)["a/null-fp32"].state == "pending"
    fleets.build(file)
    assert {step.state for step in steps(file).values()} == {"cached"}
    real = machine.versions()
    monkeypatch.setattr(keys.machine, "versions", lambda: real | {"onnx": "0.1", "tensorrt_rtx": "9"})
    stale = steps(file)
    assert stale["a/export"].reasons == (f"onnx {real['onnx']} -> 0.1",)
    assert f"onnx {real['onnx']} -> 0.1" in stale["a/null-bf16"].reasons
    monkeypatch.setattr(keys.machine, "versions", lambda: real | {"tensorrt_rtx": "9"})
    assert {step.state for step in steps(file).values()} == {"cached"}, "a tool that takes no part changes nothing"


def test_a_changed_file_of_bertc_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleets.build(file)
    hashed = keys.hash_file
    keys._code_hashes.cache_clear()
    monkeypatch.setattr(keys, "hash_file", lambda path: "changed" if path.name == "bf16.py" else hashed(path))
    found = {slot: step for slot, step in steps(file).items() if step.state != "cached"}
    keys._code_hashes.cache_clear()
    assert {slot: step.reasons for slot, step in found.items()} == {"a/null-bf16": ("precision/bf16.py changed",)}


def test_a_changed_option_and_a_changed_source(file: Path) -> None:
    fleets.build(file)
    text = file.read_text("utf-8")
    file.write_text(text.replace("[models.a]", '[[override]]\nprecision = "bf16"\nbudget = { cosine = 0.9 }\n[models.a]'))
    found = {slot: step.reasons for slot, step in steps(file).items() if step.state != "cached"}
    assert found == {"a/null-bf16": ('budget none -> {"cosine": 0.9}',)}
    file.write_text(text)
    tiny.encoder(file.parent / "a" / "m.onnx", changed=0.5)
    assert steps(file)["a/export"].reasons == ("the source's m.onnx changed",)
    assert steps(file)["a/null-fp32"].state == "pending"


def test_data_makes_stale_what_reads_it_alone(tmp_path: Path) -> None:
    """A float32 build calibrates nothing, and is verified on the data; what calibrates is in test_int8.py."""
    (tmp_path / "texts.txt").write_text("two words\n")
    path = fleets.write(tmp_path, "a", 'targets = ["null"]\nprecisions = ["fp32"]\n')
    path.write_text(path.read_text() + 'data = "texts.txt"\n')
    fleets.build(path)
    (tmp_path / "texts.txt").write_text("two more words\n")
    states = {name: step.state for name, step in steps(path).items()}
    assert states.pop("a/null-fp32") != "cached" and set(states.values()) == {"cached"}
    path.write_text(path.read_text() + 'goldens = "data"\n')
    assert "calibration data" in " ".join(steps(path)["a/export"].reasons)


def test_an_export_that_comes_out_the_same_leaves_the_builds_alone(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleets.build(file)
    newer = machine.versions() | {"transformers": "99.0"}  # which takes part in exports alone
    monkeypatch.setattr(machine, "versions", lambda: newer)
    pool = fleets.Here()
    assert fleets.states(fleets.build(file, pool)) == {"a/export": "made", "a/null-fp32": "cached", "a/null-bf16": "cached"}


def test_every_module_that_a_stage_loads_is_in_its_key(tmp_path: Path) -> None:
    """Or is left out by name: the stages before, and what only words, shows or orders things."""
    path = fleets.low_bit(tmp_path, 'targets = ["onnxruntime"]\nprecisions = ["fp16", "int8"]\n')
    script = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import fleets
from bertc.fleet import code, keys, plan
fleet, store = fleets.opened(Path(sys.argv[1]))
before = {}
for outcome in fleets.build(Path(sys.argv[1])).values():
    assert outcome.state == "made", outcome
loaded = {n: m.__file__ for n, m in sys.modules.items() if n.startswith("bertc.") and getattr(m, "__file__", None)}
inside = {str(Path(f).relative_to(code.PACKAGE)) for f in loaded.values() if Path(f).is_relative_to(code.PACKAGE)}
keyed = {name for t in plan.tasks(fleet) for name in keys.environment(t.stage, t.spec, t.recipe.precision)["code"]}
print(json.dumps(sorted(inside - keyed)))
"""
    command = [sys.executable, "-c", script, str(path), str(HELPERS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    left_out = {name.partition("/")[0].removesuffix(".py") for name in json.loads(done.stdout.splitlines()[-1])}
    words = {"recipe", "report", "core", "fleet", "__init__", "cli"}
    targets = {"targets", "precision"}  # other targets are loaded to ask for their lowerings, which are in the key
    assert left_out <= words | targets, done.stdout


def test_a_name_of_a_face_leads_to_its_own_file_alone() -> None:
    """`from ..core import write_hashed` is core/files.py, not all that the face of core lists; `targets.get` likewise."""
    goldens = code.closure([code.PACKAGE / "artifact" / "goldens.py"], code.PACKAGE)
    names = {path.relative_to(code.PACKAGE).as_posix() for path in goldens}
    assert {"core/__init__.py", "core/files.py", "data/samples.py"} <= names
    assert not {"core/progress.py", "core/discovery.py", "data/labels.py"} & names
    doctor = code.closure([code.PACKAGE / "report" / "doctor.py"], code.PACKAGE)
    assert code.PACKAGE / "targets" / "_registry.py" in doctor


def test_late_imports_count_and_type_checking_does_not() -> None:
    root = code.PACKAGE / "targets" / "tensorrt_rtx.py"
    found = {path.name for path in code.closure([root], code.PACKAGE)}
    assert {"adapter.py", "lower_encoder.py", "kernel_log.py"} <= found
    assert "opening.py" not in found


# Failures, memory, other hosts


def test_a_failure_stops_only_what_needs_it(tmp_path: Path) -> None:
    path = fleets.write(tmp_path, "ab", 'targets = ["null"]\nprecisions = ["fp32", "bf16"]\n')
    (tmp_path / "a" / "m.onnx").write_bytes(b"no model")
    outcomes = fleets.build(path)
    assert fleets.states(outcomes) == {
        "a/export": "failed",
        "b/export": "made",
        "a/null-fp32": "skipped",
        "a/null-bf16": "skipped",
        "b/null-fp32": "made",
        "b/null-bf16": "made",
    }
    assert outcomes["a/export"].exit_code == 2
    assert "not a readable ONNX file" in outcomes["a/export"].reason
    assert steps(path)["a/export"].state == "failed"
    assert fleets.states(fleets.build(path, fail_fast=True))["a/export"] == "failed"


def test_over_its_budget_is_exit_code_1_and_the_others_are_built(tmp_path: Path) -> None:
    text = 'targets = ["null"]\nprecisions = ["fp32", "bf16"]\noverride = [{ precision = "bf16", budget = { cosine = 1.0 } }]\n'
    outcomes = fleets.build(fleets.write(tmp_path, "a", text))
    assert fleets.states(outcomes) == {"a/export": "made", "a/null-fp32": "made", "a/null-bf16": "failed"}
    assert outcomes["a/null-bf16"].exit_code == 1
    assert "over its budget" in outcomes["a/null-bf16"].reason
    assert [worst_exit_code(codes) for codes in ([0, 3], [3, 1, 2], [1, 4], [2, 3], [])] == [3, 1, 4, 2, 0]


def test_fail_fast_leaves_the_rest(tmp_path: Path) -> None:
    path = fleets.write(tmp_path, "ab", 'targets = ["null"]\nprecisions = ["fp32"]\n')
    (tmp_path / "a" / "m.onnx").write_bytes(b"no model")
    states = fleets.states(fleets.build(path, fail_fast=True))
    assert states["a/export"] == "failed"
    assert states["b/null-fp32"] == "skipped"


def test_two_builds_of_8_gb_do_not_start_on_12_gb(file: Path) -> None:
    pool, (task, *_) = LocalPool(cores=2, memory=12 * 10**9), plan.tasks(config.read(file))
    need = config.parse_bytes("8 GB")
    job = {
        "key": "k",
        "store": str(file.parent / "store"),
        "cwd": "/nowhere",
    }  # its process cannot start: room is all that is asked here
    assert pool.takes(task, need)
    future = pool.submit(job, task, need)
    assert not pool.takes(task, need)
    assert pool.takes(task, config.parse_bytes("4 GB"))
    with pytest.raises(FileNotFoundError):
        pool.result(future)
    assert pool.takes(task, need)
    pool.stop()


def test_a_build_that_no_room_is_enough_for_says_so(tmp_path: Path) -> None:
    text = 'targets = ["null=fp32"]\noverride = [{ model = "a", memory = "64 GB" }]\n'
    outcomes = fleets.build(fleets.write(tmp_path, "a", text), fleets.Here(memory=12 * 10**9))
    assert outcomes["a/null-fp32"].exit_code == 3
    assert "needs 64.0 GB of memory and this machine has 12.0 GB" in outcomes["a/null-fp32"].reason


def test_what_another_host_builds_is_said_and_no_failure(tmp_path: Path, capsys: Capture) -> None:
    path = fleets.write(tmp_path, "a", 'gpus = ["h100"]\ntargets = ["null=fp32"]\nprecisions = ["fp16"]\n')
    outcomes = fleets.build(path)
    assert outcomes["a/h100-fp16"].state == "other-host"
    assert "no h100 here" in outcomes["a/h100-fp16"].reason
    assert worst_exit_code(o.exit_code for o in outcomes.values()) == 0
    assert cli.run(["fleet", "plan", str(path), "--json"]) == 0
    out, err = capsys.readouterr()
    assert "needs another host" in " ".join(err.split())
    assert {e["name"]: e["state"] for e in json.loads(out)["entries"]}["a/h100-fp16"] == "other-host"


def test_a_source_that_is_not_there_fails_its_model_alone(tmp_path: Path, capsys: Capture) -> None:
    path = fleets.write(tmp_path, "ab", 'targets = ["null"]\nprecisions = ["fp32"]\n')
    path.write_text(path.read_text("utf-8").replace("a/m.onnx", "a/absent.onnx"))
    outcomes = fleets.build(path)
    assert fleets.states(outcomes)["a/export"] == "failed"
    assert outcomes["a/export"].exit_code == 2
    assert "no file or folder at" in outcomes["a/export"].reason
    assert outcomes["b/null-fp32"].state == "made"
    assert steps(path)["a/export"].reasons == (outcomes["a/export"].reason,)
    for verb in ("plan", "status"):
        capsys.readouterr()
        assert cli.run(["fleet", verb, str(path)]) == 2, verb
        said = capsys.readouterr().err.splitlines()[-1]
        assert "no file or folder at" in said and "absent.onnx" in said and "(entries: a/null-fp32)" in said
    assert cli.run(["fleet", "status", str(path), "--entry", "b"]) == 0, "only the entries that were asked for count"


def test_data_that_is_not_there_fails_what_reads_it_alone(tmp_path: Path, capsys: Capture) -> None:
    path = fleets.low_bit(tmp_path, 'targets = ["null"]\nprecisions = ["int8-static", "fp32"]\n')
    (tmp_path / "texts.txt").unlink()
    assert cli.run(["fleet", "plan", str(path)]) == 2
    assert "no data at" in " ".join(capsys.readouterr().err.split())
    outcomes = fleets.build(path)
    states = fleets.states(outcomes)
    assert states["a/export"] == "made" and states["a/null-int8-static"] == "skipped"
    failed = {slot: outcomes[slot] for slot, state in states.items() if state == "failed"}
    assert "a/null-fp32" in failed and len(failed) == 2  # verified on it, calibrated on it
    assert all(each.exit_code == 2 and "no data at" in each.reason for each in failed.values())
    assert cli.run(["fleet", "status", str(path)]) == 2
    assert "no data at" in " ".join(capsys.readouterr().err.split())


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Missing, match=r"pip install 'bertc\[fleet\]'"):
        RayPool("auto")


# The command line, the lock, status


def test_the_commands(file: Path, capsys: Capture) -> None:
    """Real processes: plan, build, build again, status, verify."""
    assert cli.run(["fleet", "plan", str(file), "--json"]) == 0
    assert [entry["state"] for entry in json.loads(capsys.readouterr().out)["entries"]] == ["pending", "pending"]
    assert cli.run(["fleet", "build", str(file), "--json"]) == 0
    printed = capsys.readouterr()
    assert "[3/3] made a/null-bf16" in printed.err or "[3/3] made a/null-fp32" in printed.err
    told = json.loads(printed.out)
    assert sorted(told["made"]) == ["a/export", "a/null-bf16", "a/null-fp32"]
    assert told["counts"] == {"built": 2}
    assert cli.run(["fleet", "build", str(file), "--locked", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["made"] == []
    assert cli.run(["fleet", "verify", str(file)]) == 0
    assert "graph: verified" in capsys.readouterr().err
    assert cli.run(["fleet", "status", str(file), "--json", "--entry", "a/null-bf16"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["entries"]
    assert entry["state"] == "built"
    assert entry["locked"] is True
    assert entry["accuracy"]["verdict"] == "passed"
    assert 0.99 < entry["accuracy"]["cosine_min"] < 1
    assert entry["stages"]["export"] > 0


def test_locked_refuses_to_drift(file: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="there is no"):
        lock.require_same(*fleets.opened(file))
    fleet = place(file)
    store = fleets.opened(file)[1]
    lock.require_same(fleet, store)
    real = machine.versions()
    monkeypatch.setattr(keys.machine, "versions", lambda: real | {"numpy": "1.0"})
    with pytest.raises(CheckFailed, match=f"a/export: numpy {real['numpy']} -> 1.0"):
        lock.require_same(fleet, store)
    monkeypatch.undo()
    document = json.loads(fleet.lock.read_text("utf-8"))
    document["stages"]["a/null-fp32"]["digest"] = "0" * 64
    fleet.lock.write_text(json.dumps(document))
    outcomes = list(fleets.build(file).values())
    with pytest.raises(CheckFailed, match=r"a/null-fp32 came out different.*outside the key"):
        lock.require_contents(fleet, store, outcomes)
    document["entries"]["a/null-fp32"]["files"]["engine.plan"] = "0" * 64
    fleet.lock.write_text(json.dumps(document))
    with pytest.raises(CheckFailed, match=r"a/null-fp32 \(engine.plan\) came out.*the compiler built another engine"):
        lock.require_contents(fleet, store, outcomes)
    tiny.encoder(file.parent / "a" / "m.onnx", changed=0.7)
    with pytest.raises(CheckFailed, match=r"the source's m\.onnx changed"):
        lock.require_same(fleet, store)


def test_verify_finds_what_is_not_what_was_locked(file: Path, capsys: Capture) -> None:
    fleet = place(file)
    (fleet.out / "a" / "null-fp32" / "goldens.npz").unlink()
    assert cli.run(["fleet", "verify", str(file)]) == 1, "as its help says"
    assert "a/null-fp32: FAILED" in capsys.readouterr().err
    assert place(file)
    assert status.status_document(*fleets.opened(file))["counts"] == {"built": 2}, (
        "what is not as in the store is put in place again"
    )


def test_two_folders_and_two_stores_give_the_same_digests(tmp_path: Path) -> None:
    first, second = (place(fleets.write(tmp_path / name)) for name in ("one", "two"))
    assert lock.read(first) == lock.read(second)
    assert lock.read(first)["entries"].keys() == {"a/null-fp32", "a/null-bf16"}


# Which task begins first


def test_the_longest_way_to_the_end_begins_first(tmp_path: Path) -> None:
    """`b` is the larger model; its stages come before those of `a`, and each model's stages in their order."""
    path = fleets.write(tmp_path, "ab", 'targets = ["null"]\nprecisions = ["fp32", "bf16"]\n')
    tiny.encoder(tmp_path / "b" / "m.onnx", external=True)
    with (tmp_path / "b" / "w.bin").open("ab") as weights:
        weights.write(bytes(10**6))
    fleet, store = fleets.opened(path)
    tasks = plan.tasks(fleet)
    slots = [task.slot for task in order.longest_path_first(tasks, store)]
    assert slots.index("b/export") < slots.index("a/export")
    assert all(slots.index(need) < slots.index(task.slot) for task in tasks for need in task.needs.values())
    assert sorted(slots) == sorted(task.slot for task in tasks)
    fleets.build(path)
    spent = {task.slot: order.expected_seconds(task, store) for task in tasks}
    known = {slot: store.record(str(step.key))["seconds"] for slot, step in steps(path).items()}
    assert spent == known, "the next time by what it took"


def test_a_source_that_is_not_there_has_a_place_in_the_order(tmp_path: Path) -> None:
    path = fleets.write(tmp_path, "a", 'targets = ["null"]\nprecisions = ["fp32"]\n')
    path.write_text(path.read_text("utf-8").replace("a/m.onnx", "a/absent.onnx"))
    fleet, store = fleets.opened(path)
    assert [task.slot for task in order.longest_path_first(plan.tasks(fleet), store)] == ["a/export", "a/null-fp32"]
