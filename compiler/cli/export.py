"""bertc export SOURCE -o OUT: the first stages of a build, for which PyTorch is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import _shared as shared
from ._command import Command
from ._output import progress
from ._types import Source

SECTION = "Build"
EXAMPLES = (
    "bertc export minilm -o out/export",
    "bertc export CHECKPOINT --task token-classification -o out/export",
)


@click.command(cls=Command, short_help="Export a model to a checked float32 ONNX graph", examples=EXAMPLES)
@click.argument("reference", metavar="SOURCE", type=Source())
@shared.OUT_DIRECTORY
@shared.FORCE_ARTIFACT
@shared.recipe_options(*shared.SOURCE_OPTIONS)
@shared.JSON
def export(reference: str, out: Path, force: bool, as_json: bool, **options: Any) -> None:
    """Export SOURCE to a checked ONNX graph with goldens. `bertc build` starts from it without PyTorch."""
    from .. import pipeline
    from ..artifact import already_written

    log = progress()
    made = pipeline.export(shared.recipe_of(reference, log, options), out, force=force, progress=log)
    with already_written(out):
        shared.show_artifacts((made,), as_json)
