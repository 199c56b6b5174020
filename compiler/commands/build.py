"""bertc build SOURCE -o OUT: every stage, for one target or several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import _shared as shared


@click.command()
@click.argument("reference", metavar="SOURCE|RECIPE|EXPORT")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="the directory to write")
@click.option("--force", is_flag=True, help="replace an artifact that is there")
@click.option("--fp32", "precision", flag_value="fp32", help="float32, TF32 off")
@click.option("--fp16", "precision", flag_value="fp16", help="float16, reductions in float32")
@click.option("--bf16", "precision", flag_value="bf16", help="bfloat16, reductions in float32")
@click.option(
    "--int8", "precision", flag_value="int8", help="int8 GEMMs and attention by --data, the rest float16 (ONNX Runtime: float32)"
)
@click.option("--max-drop", type=float, help="give back as much int8 as keeps the drop of the metric within this, as in 0.005")
@shared.recipe_options("targets", "profiles", "source", *shared.SOURCE_OPTIONS, "fuse", "prove", "expect", "budget", "verify")
@shared.JSON
def build(reference: str, out: Path, force: bool, max_drop: float | None, as_json: bool, **options: Any) -> None:
    """Build SOURCE for one or more targets and verify each artifact before it is written.

    SOURCE is a path (checkpoint directory, .onnx, export, recipe.toml), a recipe's name, package.module:factory, or a hub id.
    """
    from .. import pipeline

    log = shared.progress()
    if max_drop is not None:
        options["budget"] = (*options["budget"], f"max_drop={max_drop}")
    made = pipeline.compile(shared.recipe_of(reference, log, options), out, force=force, progress=log)
    shared.show_artifacts(made, as_json)
