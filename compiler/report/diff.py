"""What changed between two artifacts, or two ONNX files: source, recipe, passes, operators, kernels, precision, accuracy, size.

Each side becomes a flat list of (section, name) -> value with everything in its manifest and report but times, which differ
between any two builds.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifact import manifest as artifact
from ..artifact import read_report
from ..core import InputError
from . import inspect as inspection

if TYPE_CHECKING:
    from rich.console import Console

Facts = dict[tuple[str, str], Any]  # (section, name) -> value, in the order a person reads them
SECTIONS = (
    "artifacts", "source", "recipe", "target", "io", "passes", "operators", "precision", "kernels", "engine", "accuracy", "size",
    "tools",
)  # fmt: skip
ABSENT = "-"
FOLD = 3  # more rows of one kind with the same two values are printed as one
MEASURED = ("cosine_min", "relative", "max_abs", "sqnr_db")
TIMED = frozenset({artifact.REPORT, artifact.PAGE})  # files with times in them: not compared


@dataclasses.dataclass(frozen=True)
class Difference:
    """One value that differs: `a` and `b`, None where a side has none; `change` is (b - a) / a."""

    artifact: str
    section: str
    name: str
    a: Any
    b: Any

    @property
    def change(self) -> float | None:
        """The relative change of two numbers, None where there is none."""
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (self.a, self.b))
        return (self.b - self.a) / abs(self.a) if numbers and self.a else None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"change": self.change}


def compare(a: Path, b: Path) -> list[Difference]:
    """All differences of two artifacts, two folders of artifacts (by name) or two ONNX files; hashes are checked.

    Raises InputError where one is of another kind.
    """
    if a.is_file() != b.is_file():
        raise InputError(f"{a} and {b} cannot be compared: one is a file, the other an artifact")
    if a.is_file():
        return list(_differences("", _of_graph(inspection.inspect_path(a)), _of_graph(inspection.inspect_path(b))))
    sides = [_by_name(path) for path in (a, b)]
    if len({("" in side) for side in sides}) > 1:
        names = ", ".join(name for side in sides for name in side if name)
        raise InputError(f"one of {a} and {b} is an artifact, the other a folder of them; compare with one of {names}")
    found = []
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        left, right = (side.get(name) for side in sides)
        if left is None or right is None:
            present = ["present" if each else None for each in (left, right)]
            found.append(Difference(name, "artifacts", name, *present))
            continue
        found += _differences(name, artifact_facts(left), artifact_facts(right))
    return found


def _by_name(path: Path) -> dict[str, artifact.Artifact]:
    """Artifacts by name; a single one has none, so that two of them are compared whatever their folders are called."""
    paths = artifact.find_artifacts(path)
    return {"" if each == path else each.name: artifact.open_artifact(each) for each in paths}


def _differences(name: str, a: Facts, b: Facts) -> Iterator[Difference]:
    keys = sorted(dict.fromkeys([*a, *b]), key=lambda key: SECTIONS.index(key[0]))
    for key in keys:
        if a.get(key) != b.get(key):
            yield Difference(name, *key, a.get(key), b.get(key))


def artifact_facts(found: artifact.Artifact) -> Facts:
    """What is compared of an artifact."""
    manifest = found.manifest
    report = read_report(found.path / artifact.REPORT)
    source = {key: value for key, value in manifest["source"].items() if key != "notes"}
    values: Facts = _section("source", source)
    values |= _section("recipe", {k: manifest[k] for k in ("recipe", "seed", "budget", "dims") if k in manifest})
    sizes = [",".join(f"{dim}={sizes}" for dim, sizes in profile.items()) for profile in manifest["profiles"]]
    values |= {("recipe", "profiles"): "; ".join(sizes)}
    values |= _section("target", manifest["target"])
    values |= {("io", spec["name"]): f"{spec['dtype']}{spec['dims']}" for spec in [*manifest["inputs"], *manifest["outputs"]]}
    values |= _of_passes(manifest.get("passes"))
    graph = manifest.get("graph", {"ops": {}})
    values |= _section("operators", {"all": sum(graph["ops"].values()), **graph["ops"]})
    values |= _section("operators", {key: value for key, value in graph.items() if key != "ops"})
    values |= _of_precision(manifest["precision"])
    values |= _of_engine(manifest["engine"])
    values |= _of_accuracy(report["verification"])
    values |= _of_files(manifest["files"])
    return values | _section("tools", {"bertc": manifest.get("bertc"), **manifest.get("tools", {})})


def _of_graph(found: Mapping[str, Any]) -> Facts:
    ops: dict[str, Any] = {"all": found["nodes"], **found["ops"], "opset": found["opset"]}
    typed = {f"{op} in {t}": n for op, kinds in found["precision_by_op"].items() for t, n in kinds.items()}
    values: Facts = {("io", spec["name"]): f"{spec['dtype']}{spec['dims']}" for spec in [*found["inputs"], *found["outputs"]]}
    values |= _section("operators", ops) | _section("precision", typed)
    return values | {("size", "weights, bytes"): found["initializer_bytes"]}


def _of_passes(passes: Mapping[str, Any] | None) -> Facts:
    if passes is None:
        return {("passes", "fusions"): "none"}
    found = _section("passes", passes["counts"])
    refused = Counter(each["rule"] for each in passes["refusals"])
    return found | {("passes", f"candidates not fused: {rule}"): count for rule, count in refused.items()}


def _of_precision(plan: Mapping[str, Any]) -> Facts:
    """The counts of the plan, and each node that stays in float32 by its name."""
    lists = {"islands", "clamps"}
    found = _section("precision", {key: value for key, value in plan.items() if key not in lists})
    found |= {("precision", "float32 islands"): len(plan["islands"])}
    found |= {("precision", f"island {each['node']}"): each["reason"] for each in plan["islands"]}
    return found | {("precision", f"constant {each['constant']}"): each["now"] for each in plan.get("clamps", ())}


def _of_engine(engine: Mapping[str, Any]) -> Facts:
    """Kernels in all, by layer and by type; and the target's other facts."""
    found = _section("engine", {key: value for key, value in engine.items() if key != "kernels"})
    kernels = engine.get("kernels")
    if kernels is None:
        return found
    rows = [row for row in kernels["rows"] if not row["profile"]]
    layers = Counter(row["layer"] or "outside the layers" for row in rows)
    kinds = Counter(f"{row['type']} {row['dtype']}".strip() for row in rows)
    counted = {"all": kernels["count"], **{f"in {layer}" if "." in layer else layer: n for layer, n in layers.items()}, **kinds}
    return found | _section("kernels", counted)


def _of_accuracy(verdict: Mapping[str, Any] | None) -> Facts:
    if verdict is None:
        return {("accuracy", "verified"): "no"}
    found: Facts = {("accuracy", "verdict"): verdict["verdict"], ("accuracy", "engine run"): verdict["engine_executed"]}
    measured = "engine" if verdict["engine"] else "graph"
    result = verdict[measured]
    found |= {("accuracy", "measured on"): measured, ("accuracy", "data"): verdict["data"]}
    for name, output in result["outputs"].items():
        found |= {("accuracy", f"{name}: {key}"): output[key] for key in MEASURED}
    found |= {("accuracy", f"kept: {each['name']}"): each["agreement"] for each in result["decisions"]}
    found |= {("accuracy", f"drop: {each['name']}"): each["drop"] for each in result["metrics"]}
    return found


def _of_files(files: Mapping[str, Mapping[str, Any]]) -> Facts:
    """The bytes of each file, and its hash: another content may have the same size."""
    found: Facts = {}
    for name, entry in files.items():
        if name in TIMED:
            continue
        found |= {("size", f"{name}, bytes"): entry["bytes"], ("size", f"{name}, sha256"): entry["sha256"][:12]}
    return found


def _section(section: str, values: Mapping[str, Any], prefix: str = "") -> Facts:
    """Values by their dotted names; a list is one value."""
    found: Facts = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _section(section, value, f"{prefix}{key}.")
            continue
        plain = not isinstance(value, list | tuple)
        found[(section, f"{prefix}{key}")] = value if plain else ", ".join(map(str, value)) or "none"
    return found


def show(a: Path, b: Path, found: list[Difference], console: Console) -> None:
    """Print the differences, by section."""
    from .layout import Table

    if not found:
        console.print(f"no difference between {a} and {b}", highlight=False, markup=False)
        return
    for name, path in (("a", a), ("b", b)):
        console.print(f"{name}: {path}", highlight=False, markup=False)
    several = any(each.artifact for each in found)
    rows = Table(
        *(("artifact",) if several else ()), "what", "name", "a", "b", "change", wrap=("name", "a", "b"), drop=("change",)
    )
    for each, fresh, alike in _folded(found):
        change = "" if each.change is None else _per_cent(100 * each.change)
        cells = (each.section if fresh else "", each.name, _shown(each.a), _shown(each.b), change)
        rows.add(*((each.artifact,) if several else ()), *cells)
        if alike:
            rows.add(*(("",) if several else ()), "", f"{alike} more like it (see --json)", "", "", "")
    console.print(rows)


def _folded(found: list[Difference]) -> Iterator[tuple[Difference, bool, int]]:
    """(difference, whether it begins a section, how many more of its kind there are): one row for dozens of like islands."""
    last: tuple[Any, ...] = ()
    for key, group in itertools.groupby(found, lambda d: (d.artifact, d.section, d.name.partition(" ")[0], d.a, d.b)):
        same = list(group)
        shown = same if len(same) <= FOLD else same[:1]
        for at, each in enumerate(shown):
            left = len(same) - len(shown) if at == len(shown) - 1 else 0
            yield each, key[:2] != last[:2], left
            last = key


def _per_cent(value: float) -> str:
    """`+12.5%`, and `-0.0003%` rather than -0.0%: a cosine of a little less is not the same cosine."""
    return f"{value:+.1f}%" if 0.05 <= abs(value) < 1e5 else f"{value:+.1g}%"


def _shown(value: Any) -> str:
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.7g}" if isinstance(value, float) else str(value)
