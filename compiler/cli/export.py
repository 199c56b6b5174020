"""bertc export SOURCE -o OUT: the first stages of a build, for which PyTorch is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import _shared as shared


@click.command()
@click.argument("reference", metavar="SOURCE")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="the directory to write")
@click.option("--force", is_flag=True, help="replace an artifact that is there")
@shared.recipe_options(*shared.SOURCE_OPTIONS)
@shared.JSON
def export(reference: str, out: Path, force: bool, as_json: bool, **options: Any) -> None:
    """Export SOURCE to a checked ONNX graph with goldens: what `bertc build` can start from without PyTorch."""
    from .. import pipeline

    log = shared.progress()
    made = pipeline.export(shared.recipe_of(reference, log, options), out, force=force, progress=log)
    shared.show_artifacts((made,), as_json)
