"""bertc package ARTIFACT... --triton DIR: a model repository for Triton Inference Server."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..core import InputError, Missing
from . import _shared as shared
from ._command import Command
from ._output import print_json, print_result, progress
from ._types import FILE, OneOf, Option

SECTION = "Serve"
EXAMPLES = (
    "bertc package out/minilm --triton out/triton --config serving.toml",
    "bertc package minilm@8.9=out/ada minilm@8.0=out/a100 --triton out/triton",
)


@click.command(cls=Command, short_help="Write a repository for Triton Inference Server", examples=EXAMPLES)
@click.argument("artifacts", nargs=-1, required=True, type=FILE, metavar="[NAME[@CAPABILITY]=]ARTIFACT...")
@click.option("--triton", "out", type=FILE, required=True, metavar="DIR", help="The directory to write.")
@click.option("--config", "config_path", type=FILE, metavar="FILE", help="serving.toml: policy, queue, deadline, workers.")
@click.option(
    "--backend",
    cls=Option,
    type=OneOf("backend", lambda: ("auto", "python")),
    default="auto",
    show_default=True,
    help="auto: the engine's own backend. python: bertc.load, rows batched by length.",
)
@click.option("--tokenizer/--no-tokenizer", default=True, help="Also models that take texts (default).")
@click.option("--force", is_flag=True, help="Replace what a former call wrote.")
@shared.JSON
def package(
    artifacts: Sequence[Path],
    out: Path,
    config_path: Path | None,
    backend: str,
    tokenizer: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Write ARTIFACTs as a model repository for Triton: DIR/repository, and DIR/verify.py, which sends the goldens to a server.

    Plans of one model for several GPUs share a NAME, each with its compute capability. What serving.toml says and Triton cannot
    express is listed.
    """
    try:
        from ..serve import config as file
        from ..serve import triton
    except ImportError as error:
        raise Missing(f"--triton needs {error.name}: pip install 'bertc[triton]'") from error
    named = [triton.Named(*_named(text)) for text in artifacts]
    config = file.read_config(config_path) if config_path else None
    log = progress()
    if config is not None:
        for name in sorted(set(config.models) - {each.name for each in named}):
            log.note(f"{config_path}: model {name!r} is not packaged: no artifact is given under this name")
    with log.stage(f"package {len(named)} artifacts"):
        made = triton.package(named, out, config, backend=backend, tokenizer=tokenizer, force=force)
    for name, notes in made.notes.items():
        for note in notes:
            log.note(f"{name}: {note}")
    print_result(f"wrote {out}: {', '.join(made.models)}")
    print_result(f"tritonserver --model-repository {out / 'repository'}; then python {out / 'verify.py'}")
    if as_json:
        found: dict[str, Any] = {
            "path": str(out),
            "models": list(made.models),
            "notes": {k: list(v) for k, v in made.notes.items()},
        }
        print_json(found)


def _named(text: Path) -> tuple[str, Path, str]:
    """(the name of the model, its artifact, the compute capability of its plan or "")."""
    name, equals, path = str(text).partition("=")
    if not equals or "/" in name:
        return re.sub(r"[^A-Za-z0-9._-]", "-", text.resolve().name), text, ""
    name, at, capability = name.partition("@")
    if at and not capability:
        raise InputError(f"{text}: nothing stands behind @; a compute capability is meant, as in {name}@8.9={path}")
    return name, Path(path), capability
