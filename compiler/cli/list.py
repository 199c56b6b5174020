"""bertc list: what there is to build from, for and with."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..core import InputError, did_you_mean
from . import _shared as shared
from ._command import Command
from ._output import console, print_json, print_result
from ._types import NameOf, OneOf

SECTION = "Look"
EXAMPLES = ("bertc list targets", "bertc list gpus l4 h100 --json")
Rows = dict[str, dict[str, Any]]


@click.command(name="list", cls=Command, short_help="List targets, recipes, precisions, GPU models", examples=EXAMPLES)
@click.argument("what", required=False, type=OneOf("kind", lambda: KINDS), metavar="[targets|recipes|precisions|gpus]")
@click.argument("names", nargs=-1, type=NameOf(lambda kind: names_of(kind)), metavar="[NAME]...")
@shared.JSON
def list(what: str | None, names: Sequence[str], as_json: bool) -> None:
    """List what exists, all of it or one kind, or only the NAMEs of a kind.

    targets: what each needs, and whether this machine builds and runs it. recipes: where the model comes from. precisions: how
    to ask for one. gpus: the SM of a GPU model, and the target that builds for it.
    """
    known = names_of(what)
    for name in names:
        if name not in known:
            raise InputError(f"unknown name {name!r} among {what}{did_you_mean(name, known)}")
    found = {kind: select(rows(), names) for kind, rows in KINDS.items() if what in (None, kind)}
    for kind, rows_of_kind in found.items():
        show(kind, rows_of_kind)
    if as_json:
        print_json(found)


def names_of(kind: str | None) -> tuple[str, ...]:
    """The names of a kind, without what is known of each."""
    from .. import precision, recipe, targets
    from ..core import gpu_models

    names: Mapping[str, Callable[[], Sequence[str]]] = {
        "targets": targets.names,
        "recipes": lambda: tuple(recipe.names()),
        "precisions": precision.names,
        "gpus": gpu_models.names,
    }
    return tuple(names[kind]()) if kind else ()


def select(rows: Rows, names: Sequence[str]) -> Rows:
    return {name: row for name, row in rows.items() if not names or name in names}


def show(kind: str, rows: Rows) -> None:
    """A heading and one line a name."""
    from ..report import Table

    table = Table(*COLUMNS[kind], wrap=PROSE)
    for name, row in rows.items():
        table.add(name, *CELLS[kind](row))
    print_result(f"{kind} ({len(rows)})")
    console().print(table)


def targets_here() -> Rows:
    """Each target: what it is, whether this machine builds and runs it, and what that takes."""
    from .. import targets

    rows: Rows = {}
    for name in targets.names():
        target = targets.get(name)
        able = target.available()
        rows[name] = {
            "about": docstring(Path(str(targets.__file__)).parent, name),
            "build": able.build,
            "run": able.run,
            "reason": able.reason,
            "install": able.install,
            "sms": [*target.SMS],
            "default_sms": [*target.DEFAULT_SMS],
        }
    return rows


def target_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    ready = row["build"] and row["run"]
    missing = row["reason"] if row["build"] else f"{row['reason']}: {row['install']}"
    return ("yes" if row["build"] else "no", "yes" if row["run"] else "no", row["about"], "" if ready else missing)


def recipes_here() -> Rows:
    """Each recipe that ships with bertc: its source, its targets and the first sentence of its file."""
    from .. import recipe

    rows: Rows = {}
    for name, path in recipe.names().items():
        found = recipe.read(path)
        rows[name] = {"about": comment(path), "source": found.source, "task": found.task, "targets": [*found.targets]}
    return rows


def precisions_here() -> Rows:
    """Each precision mode: what it is and the option of `bertc build` that asks for it."""
    from .. import precision
    from .build import FORMS

    forms = {mode: f"--int8 {form}" for form, mode in FORMS.items()}
    folder = Path(str(precision.__file__)).parent
    return {
        name: {
            "about": docstring(folder, name),
            "option": forms.get(name, f"--{name}").removesuffix(" auto"),
            "needs_data": name in precision.CALIBRATED,
        }
        for name in precision.names()
    }


def gpus_known() -> Rows:
    """Each GPU model that a fleet can name: SM, memory, the target that builds for it, whether this machine has one."""
    from .. import targets
    from ..core import gpu_models

    here = gpu_models.local_gpus()
    return {
        gpu.name: {
            "sm": gpu.sm,
            "memory_gb": gpu.memory_gb,
            "target": targets.target_for(gpu).name,
            "here": gpu.name in here,
        }
        for gpu in gpu_models.TABLE
    }


def docstring(folder: Path, name: str) -> str:
    """The first line of a module's docstring, without its name: read, not imported, for that would load ONNX."""
    text = (folder / f"{name.replace('-', '_')}.py").read_text("utf-8")
    line = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    before, colon, after = line.partition(": ")
    return (after if colon and before.lower() == name else line).replace("`", "")


def comment(path: Path) -> str:
    """The first sentence of the comment that a recipe begins with."""
    lines = path.read_text("utf-8").splitlines()
    last = next((at for at, line in enumerate(lines) if not line.startswith("#")), len(lines))
    text = " ".join(line.removeprefix("#").strip() for line in lines[:last])
    return text.partition(". ")[0].removesuffix(".")


KINDS: Mapping[str, Callable[[], Rows]] = {
    "targets": targets_here,
    "recipes": recipes_here,
    "precisions": precisions_here,
    "gpus": gpus_known,
}
PROSE = ("what it is", "missing here")
COLUMNS = {
    "targets": ("target", "build", "run", "what it is", "missing here"),
    "recipes": ("recipe", "source", "what it is"),
    "precisions": ("precision", "option", "data", "what it is"),
    "gpus": ("GPU", "SM", "memory", "target", "here"),
}
CELLS: Mapping[str, Callable[[Mapping[str, Any]], tuple[str, ...]]] = {
    "targets": target_cells,
    "recipes": lambda row: (row["source"], row["about"]),
    "precisions": lambda row: (row["option"], "--data" if row["needs_data"] else "-", row["about"]),
    "gpus": lambda row: (row["sm"], f"{row['memory_gb']} GB", row["target"], "yes" if row["here"] else ""),
}
