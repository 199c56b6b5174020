"""bertc compress MODEL -o OUT: layers, neurons, heads and ranks taken out by what the output loses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core import InputError
from . import _shared as shared
from ._command import Command
from ._output import console, print_json, print_result, progress
from ._types import COUNT, INPUT, SEED, OneOf, Source

if TYPE_CHECKING:
    from ..report import Table

SECTION = "Build"
EXAMPLES = (
    "bertc compress MODEL -o out/small --prune-ffn 0.5 --data t.txt --recover 2m",
    "bertc compress minilm -o out/small --drop-layers 2 --data texts.txt",
)


def _sharing() -> Sequence[str]:
    from ..compress import SHARING

    return SHARING


@click.command(cls=Command, short_help="Take layers, neurons, heads or ranks out of a model", examples=EXAMPLES)
@click.argument("reference", metavar="MODEL", type=Source())
@shared.OUT_DIRECTORY
@click.option("--force", is_flag=True, help="Replace what is there.")
@click.option("--data", type=INPUT, metavar="FILE", help="Texts like those it will see: .txt, .jsonl, .csv, .tsv.")
@click.option("--held-out", type=INPUT, metavar="FILE", help="Texts to judge by; default: 5 % of the others, by their hash.")
@click.option("--pairs", type=INPUT, metavar="FILE", help="Pairs (text, text_pair) to judge retrieval by: MRR@10.")
@click.option("--drop-layers", type=click.INT, metavar="NUMBER", help="Leave out as many layers, those missed least.")
@click.option("--prune-ffn", type=click.FLOAT, metavar="SHARE", help="Take out this share of FFN neurons, in each layer.")
@click.option("--prune-heads", type=click.FLOAT, metavar="SHARE", help="Take out this share of all attention heads.")
@click.option("--low-rank", type=click.FLOAT, metavar="SHARE|RANK", help="FFN matrices as products: 0.5 of full rank, or 256.")
@click.option(
    "--share-layers", is_flag=False, flag_value="best", type=OneOf("rule", _sharing), help="One layer for all; default: best."
)
@click.option("--recover", metavar="STEPS|TIME", help="Train what is left, the original as teacher: 300 steps, or 120s.")
@click.option("--multiple", type=COUNT, default=64, metavar="NUMBER", help="Widths are multiples of it; default: 64.")
@click.option("--max-length", type=COUNT, metavar="NUMBER", help="Tokens of a text, at most; default: 128.")
@click.option(
    "--seed", type=SEED, default=0, metavar="NUMBER", help="Of the texts that are measured on, and of the training; default: 0."
)
@shared.recipe_options("task", *shared.GIVEN_OPTIONS)
@shared.JSON
def compress(reference: str, out: Path, force: bool, as_json: bool, **given: Any) -> None:
    """Make MODEL smaller, and write what is left as a directory that `bertc build` takes.

    Steps are combined in this order: layers, FFN, heads, low rank, sharing. What goes is what the output on --data misses least,
    and matrices become smaller or fewer, so the engine does. compression.json and compression.html say what each step gave in
    FLOPs, bytes and kernels of a compiled engine, and what it cost, with intervals.

    Fewer layers and a narrower FFN are written as a Hugging Face directory. Heads and ranks fit no config: they are written as an
    export (bertc export), from which bertc build goes on without PyTorch.
    """
    from .. import compress as compressing
    from ..source import SourceOptions

    source = {name: given.pop(name) for name in ("task", *shared.GIVEN_OPTIONS)}
    if source.pop("adapter"):
        raise InputError("--adapter: merge it first: a model is one checkpoint (PEFT's merge_and_unload, then save_pretrained)")
    options = SourceOptions(**{name: value for name, value in source.items() if value is not None})
    request = compressing.Request(reference, options=options, **given)
    made = compressing.compress(request, out, force=force, progress=progress())
    console().print(_table(made.document))
    print_result(f"{made.path}: {made.document['summary']}")
    if as_json:
        print_json(made.document)


def _table(document: dict[str, Any]) -> Table:
    from ..report import Table

    first = document["original"]
    measures = [each["name"] for each in first["quality"]["measures"]]
    tasks = [each["name"] for each in first["quality"]["tasks"]]
    rows = Table("step", "parameters", "FLOPs", "weights", _counted(first["engine"]), *measures, *tasks)
    names = [("original", first), *((each["said"], each) for each in document["steps"])]
    for name, each in names:
        engine = each["engine"]
        cells = [f"{engine['flops'] / 1e9:.2f} G", f"{engine['weight_bytes'] / 2**20:.1f} MiB", str(engine["kernels"])]
        rows.add(name, f"{each['shape']['parameters'] / 1e6:.1f} M", *cells, *_numbers(each["quality"]))
    if document["recovery"]:
        repaired = document["recovery"]
        rows.add(f"after {repaired['steps']} steps of repair", "", "", "", "", *_numbers(repaired["quality"]))
    return rows


def _counted(engine: dict[str, Any]) -> str:
    return "kernels" if engine["counted"].startswith("kernels") else "nodes"


def _numbers(quality: dict[str, Any]) -> list[str]:
    """Each measure with half the width of its interval, each metric of the task as it is."""
    found = []
    for each in quality["measures"]:
        ends = "" if each["low"] is None else f" ± {(each['high'] - each['low']) / 2:.3f}"
        found.append(f"{each['value']:.3f}{ends}")
    return found + [f"{each['value']:.3f}" for each in quality["tasks"]]
