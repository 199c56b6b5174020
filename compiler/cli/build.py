"""bertc build SOURCE -o OUT: every stage, for one target or several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ..core import InputError
from . import _output as output
from . import _shared as shared
from ._command import Command
from ._types import Number, Source

SECTION = "Build"
EXAMPLES = (
    "bertc build minilm --fp32 --target onnxruntime -o out/minilm",
    "bertc build CHECKPOINT --fp16 --target tensorrt-rtx:sm86,sm89 -o out/engine",
)
FLAGS = ("fp32", "fp16", "bf16", "fp8")
FORMS = {"auto": "int8", "static": "int8-static", "dynamic": "int8-dynamic", "weights": "int8-weights"}
INT8 = (
    "int8 GEMMs, the rest float16 (ONNX Runtime: float32). auto, or no value: the better form, where it pays. static: scales "
    "from --data; on TensorRT attention too. dynamic: ONNX Runtime finds scales as it runs. weights: stored as int8 only. "
    "--data: for auto and static."
)


class BuildCommand(Command):
    """`--int8 SOURCE` names a source: only a form that is known is the option's value."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        following = [*args[1:], ""]
        end = args.index("--") if "--" in args else len(args)
        bare = [at for at, word in enumerate(args[:end]) if word == "--int8" and following[at] not in FORMS]
        given = ["--int8=auto" if at in bare else word for at, word in enumerate(args)]
        try:
            return super().parse_args(ctx, given)
        except click.UsageError as error:
            hint = f"; --int8 takes {', '.join(FORMS)}" if bare else ""
            raise click.UsageError(f"{error.format_message()}{hint}", ctx) from error


@click.command(cls=BuildCommand, short_help="Build a model for one or more targets, each verified", examples=EXAMPLES)
@click.argument("reference", metavar="SOURCE|RECIPE|EXPORT", type=Source())
@shared.OUT_DIRECTORY
@shared.FORCE_ARTIFACT
@click.option("--fp32", is_flag=True, help="float32, TF32 off.")
@click.option("--fp16", is_flag=True, help="float16, reductions in float32.")
@click.option("--bf16", is_flag=True, help="bfloat16, reductions in float32.")
@click.option("--fp8", is_flag=True, help="float8 (E4M3) GEMMs, the rest float16; needs --data, sm89 or later.")
@click.option("--int8", type=click.Choice(FORMS), is_flag=False, flag_value="auto", help=INT8)
@click.option(
    "--max-drop", type=Number(0, 2), metavar="NUMBER", help="Keep layers in float until the metric drops by at most this: 0.005."
)
@shared.recipe_options(
    "targets", "profiles", "source", *shared.SOURCE_OPTIONS, "fuse", "prove", "packed", "plugins", "expect", "budget", "verify"
)
@shared.JSON
def build(
    reference: str, out: Path, force: bool, int8: str | None, max_drop: float | None, as_json: bool, **options: Any
) -> None:
    """Build SOURCE for one or more targets and verify each artifact before it is written.

    SOURCE is a path (checkpoint directory, .onnx, export, recipe.toml), a recipe's name, package.module:factory, or a hub id.
    """
    from .. import pipeline
    from ..artifact import already_written

    options["precision"] = _precision({name: options.pop(name) for name in FLAGS}, int8)
    log = output.progress()
    if max_drop is not None:
        options["budget"] = (*options["budget"], f"max_drop={max_drop}")
    made = pipeline.build_recipe(shared.recipe_of(reference, log, options), out, force=force, progress=log)
    with already_written(out):
        shared.show_artifacts(made, as_json)


def _precision(flags: Mapping[str, bool], int8: str | None) -> str | None:
    """The precision that was asked for. InputError where several were: the last one would win, and nobody would know."""
    asked = {f"--{name}": name for name, given in flags.items() if given} | ({"--int8": FORMS[int8]} if int8 else {})
    if len(asked) > 1:
        raise InputError(f"{' and '.join(asked)}: an artifact has one precision; give one of them")
    return next(iter(asked.values()), None)
