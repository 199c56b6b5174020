"""A system from its training to its table: train, build every module for every target and precision, judge what was built.

OUT/trained/               what `train` writes: a folder a module that `bertc build` takes, and what `judge` needs
OUT/built/MODULE/BUILD/    the artifacts
OUT/system.json, table.md  what each build is and what the system does with it
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import bertc
from bertc.core import BertcError, InputError, RecipeError, first_line, write_json, write_text

from .table import render

TRAINED = "trained"  # among what `judge` gets, the folder that `train` wrote
BASELINE = "baseline "  # what begins a metric that no artifact changes: the same without training, by chance, by the majority
AGREEMENT = "same as PyTorch: "  # what begins a share of equal choices: all of them in float32, said and without a bar below
RUNS_HERE = "onnxruntime"  # the target whose artifacts are judged; the others' engines are verified as far as bertc can
MAX_DROP = 0.01  # of any metric against float32
_HANDED: list[Callable[[], Any]] = []


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a training may take. `quick`: seconds, to show that it learns at all."""

    seconds: float = 480.0
    seed: int = 0
    quick: bool = False


@dataclasses.dataclass(frozen=True)
class Module:
    """A trained module: a folder that `bertc build` takes, data like what it will see, and the fusions that it must get."""

    name: str
    source: Path
    data: Path | None = None
    expect: Mapping[str, int] | str | None = None


@dataclasses.dataclass(frozen=True)
class System:
    """`train` writes modules below a folder. `judge` gets the artifact of each by name, and the folder of the training as
    TRAINED; of its metrics more is better."""

    name: str
    train: Callable[[Path, Budget], list[Module]]
    judge: Callable[[Mapping[str, Path]], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """system.toml: what is built, and options of `bertc.build` by module, and by precision in it."""

    targets: tuple[str, ...]
    precisions: tuple[str, ...]
    modules: Mapping[str, Mapping[str, Any]]

    def options(self, module: Module, precision: str) -> dict[str, Any]:
        given = self.modules.get(module.name, {})
        plain = {key: value for key, value in given.items() if not isinstance(value, Mapping) or key == "budget"}
        chosen = plain | dict(given.get(precision, {}))
        if isinstance(module.expect, str):
            chosen["expect"] = module.expect
        return chosen


def read_plan(name: str) -> Plan:
    """The system.toml of a system. RecipeError for one that says something else than this."""
    path = Path(__file__).parent / name.replace("-", "_") / "system.toml"
    found = tomllib.loads(path.read_text("utf-8"))
    if unknown := sorted(found.keys() - {"targets", "precisions", "modules"}):
        raise RecipeError(f"{path.name} of {name}: unknown key {unknown[0]!r}; known: targets, precisions, modules")
    return Plan(tuple(found["targets"]), tuple(found["precisions"]), found.get("modules", {}))


def run(
    system: System,
    out: Path,
    budget: Budget | None = None,
    *,
    targets: Sequence[str] = (),
    precisions: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train, build and judge; returns what system.json says. Modules that are trained already are built again, not trained."""
    budget = budget or Budget()
    plan = read_plan(system.name)
    plan = dataclasses.replace(plan, targets=tuple(targets) or plan.targets, precisions=tuple(precisions) or plan.precisions)
    modules, spent = _trained(system, out / TRAINED, budget, say)
    rows = [row for module in modules for row in _built(module, plan, out / "built" / module.name, say)]
    metrics = {precision: _judged(system, rows, precision, out / TRAINED, say) for precision in plan.precisions}
    found = {
        "system": system.name,
        "bertc": bertc.__version__,
        "budget": dataclasses.asdict(budget),
        "train_seconds": spent,
        "metrics": {precision: values for precision, values in metrics.items() if values is not None},
        "rows": rows,
    }
    found["misses"] = misses(found)
    write_json(out / "system.json", found)
    write_text(out / "table.md", render(found) + "\n", "-o")
    return found


def misses(found: Mapping[str, Any]) -> list[str]:
    """Where a system falls short: a build that failed, fusions that are not there, a metric that fell by more than MAX_DROP,
    choices of float32 that are not PyTorch's."""
    short = [f"{_name(row)}: {row['failed']}" for row in found["rows"] if row.get("failed")]
    short += [f"{_name(row)}: {row['unfused']}" for row in found["rows"] if row.get("unfused")]
    exact = found["metrics"].get("fp32", {})
    for precision, values in found["metrics"].items():
        for name, value in values.items():
            drop = exact.get(name, value) - value
            if name.startswith(AGREEMENT):
                short += [f"{RUNS_HERE} fp32: {name} {value:.4f}, not 1"] if precision == "fp32" and value < 1 else []
            elif drop > MAX_DROP and not name.startswith(BASELINE):
                short.append(f"{RUNS_HERE} {precision}: {name} {value:.4f} is {drop:.4f} below float32's")
    return short


def write_export(make: Callable[[], Any], out: Path, **options: Any) -> Path:
    """Export a FactoryModel that lives in memory, as `bertc.export` does one by its name; returns the folder."""
    _HANDED.append(make)
    try:
        bertc.export(f"{__name__}:handed", out, force=True, **options)
    finally:
        _HANDED.pop()
    return out


def handed() -> Any:
    """The factory that `write_export` names, while it exports."""
    if not _HANDED:
        raise InputError("no module is handed over: give the export folder that the training wrote")
    return _HANDED[-1]()


def _trained(system: System, folder: Path, budget: Budget, say: Callable[[str], None]) -> tuple[list[Module], float]:
    """The modules, and the seconds that their training took. modules.json says that a training came to its end."""
    kept, wanted = folder / "modules.json", dataclasses.asdict(budget)
    if kept.is_file():
        known = json.loads(kept.read_text("utf-8"))
        if known["budget"] != wanted:
            raise InputError(f"{folder} was trained with {known['budget']}, {wanted} is asked for: give another -o, or remove it")
        say(f"{folder}: trained before, in {known['seconds']:.0f} s")
        return [_module(each, folder) for each in known["modules"]], known["seconds"]
    if folder.exists():
        shutil.rmtree(folder)  # of a training that did not end
    folder.mkdir(parents=True)
    began = time.process_time()
    modules = system.train(folder, budget)
    seconds = round(time.process_time() - began, 1)
    say(f"{system.name}: {len(modules)} modules trained in {seconds:.0f} CPU seconds")
    facts = [_relative(module, folder) for module in modules]
    write_json(kept, {"budget": wanted, "seconds": seconds, "modules": facts})
    return modules, seconds


def _relative(module: Module, folder: Path) -> dict[str, Any]:
    expect = dict(module.expect) if isinstance(module.expect, Mapping) else module.expect
    data = str(module.data.relative_to(folder)) if module.data else None
    return {"name": module.name, "source": str(module.source.relative_to(folder)), "data": data, "expect": expect}


def _module(facts: Mapping[str, Any], folder: Path) -> Module:
    data = folder / facts["data"] if facts["data"] else None
    return Module(facts["name"], folder / facts["source"], data, facts["expect"])


def _built(module: Module, plan: Plan, out: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for each target and precision: the export is made once, and what fails there leaves the others."""
    whole = module.source
    if not (whole / "manifest.json").is_file():
        whole = out / "export"
        bertc.export(module.source, whole, force=True, profiles=list(plan.options(module, "fp32").get("profiles", ())))
    rows = []
    for target in plan.targets:
        for precision in plan.precisions:
            row = {"module": module.name, "target": target, "precision": precision}
            where = out / f"{target.replace(':', '-')}-{precision}"
            rows.append(row | _build(module, whole, where, target, precision, plan.options(module, precision)))
            say(f"{_name(rows[-1])}: {rows[-1].get('failed') or 'built'}")
    return rows


def _build(module: Module, source: Path, out: Path, target: str, precision: str, options: Mapping[str, Any]) -> dict[str, Any]:
    data = {"data": str(module.data)} if module.data else {}
    try:
        (made,) = bertc.build(source, out, force=True, targets=[f"{target}={precision}"], **data, **options)
    except BertcError as error:
        return {"failed": first_line(error)}
    facts, report = made.manifest, json.loads((made.path / "report.json").read_text("utf-8"))
    fused = dict((facts["passes"] or {}).get("counts", {}))
    return {
        "artifact": str(made.path),
        "built": facts["precision"]["mode"],  # int8 may be found not worth it
        "bytes": _engine_bytes(made.path),
        "fused": fused,
        "unfused": _unfused(module.expect, fused),
        "kernels": (facts["engine"].get("kernels") or {}).get("count"),
        "verified": (report["verification"] or {}).get("verdict"),
        "notes": report["notes"],
    }


def _engine_bytes(artifact: Path) -> int:
    """What a runtime loads: the engine, or the file of ONNX Runtime with its weights; not the typed graph beside it."""
    return sum(path.stat().st_size for name in ("*.plan", "model.onnx*") for path in artifact.glob(name))


def _unfused(expect: Mapping[str, int] | str | None, fused: Mapping[str, int]) -> str | None:
    if not isinstance(expect, Mapping):
        return None  # bertc.build judged the name of a family
    wrong = [f"{rule} {fused.get(rule, 0)} for {count}" for rule, count in expect.items() if fused.get(rule, 0) != count]
    return f"fused otherwise than expected: {', '.join(wrong)}" if wrong else None


def _judged(
    system: System, rows: Sequence[Mapping[str, Any]], precision: str, trained: Path, say: Callable[[str], None]
) -> dict[str, float] | None:
    """The metrics of a precision over what ONNX Runtime runs here; None where a module of it is not there."""
    own = [row for row in rows if row["target"] == RUNS_HERE and row["precision"] == precision]
    if not own or any("artifact" not in row for row in own):
        return None
    paths = {row["module"]: Path(row["artifact"]) for row in own}
    found = {name: float(value) for name, value in system.judge({**paths, TRAINED: trained}).items()}
    say(f"{RUNS_HERE} {precision}: " + ", ".join(f"{name} {value:.4f}" for name, value in found.items()))
    return found


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['module']}, {row['target']} {row['precision']}"
