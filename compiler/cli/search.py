"""bertc search MODEL --latency 20ms -o OUT: the best student of a model within a latency or a size."""

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
    "bertc search minilm --latency 20ms --shape 8x64 --data t.txt -o out/fast",
    "bertc search MODEL --size 90MB --uniform --data texts.txt -o out/small",
)
SHOWN = 12  # rows of the front


def _targets() -> Sequence[str]:
    from ..search import TARGETS

    return TARGETS


def _precisions() -> Sequence[str]:
    from ..search import PRECISIONS

    return tuple(dict.fromkeys(each for names in PRECISIONS.values() for each in names))


@click.command(cls=Command, short_help="Find the best student within a latency or size", examples=EXAMPLES)
@click.argument("reference", metavar="MODEL", type=Source())
@shared.OUT_DIRECTORY
@click.option("--force", is_flag=True, help="Replace what is there, and begin an unfinished search again.")
@click.option("--resume", is_flag=True, help="Go on with a search that was interrupted, from OUT.search.")
@click.option("--data", type=INPUT, metavar="FILE", help="Texts to learn from: .txt, .jsonl, .csv, .tsv.")
@click.option("--held-out", type=INPUT, metavar="FILE", help="Texts to judge by; default: 5 % of the others, by their hash.")
@click.option("--pairs", type=INPUT, metavar="FILE", help="Pairs (text, text_pair) to judge retrieval by: MRR@10.")
@click.option("--latency", metavar="TIME", help="The limit: of one batch on this machine, as in 2ms.")
@click.option("--size", metavar="BYTES", help="The limit: weights of the engine, as in 20MB (or MiB).")
@click.option("--target", type=OneOf("target", _targets), default="onnxruntime", help="What it is built for.")
@click.option(
    "--precision", "precisions", multiple=True, type=OneOf("precision", _precisions), help="To choose from; repeatable."
)
@click.option("--shape", default="8x128", metavar="BATCHxLENGTH", help="What a latency is of; default: 8x128.")
@click.option("--threads", type=click.IntRange(min=0), default=0, metavar="NUMBER", help="Of the engine; default: one a core.")
@click.option("--trials", type=COUNT, default=100, metavar="NUMBER", help="Candidates that are tried; default: 100.")
@click.option("--steps", type=COUNT, default=300, metavar="NUMBER", help="Of the network they share; default: 300.")
@click.option("--finalists", type=COUNT, default=4, metavar="NUMBER", help="Trained on, the better half further; default: 4.")
@click.option("--finish", type=click.IntRange(min=0), default=600, metavar="NUMBER", help="Steps of the best one; default: 600.")
@click.option("--uniform", is_flag=True, help="Only what a Hugging Face config can hold: one FFN width, all heads.")
@click.option("--multiple", type=COUNT, default=64, metavar="NUMBER", help="Widths are multiples of it; default: 64.")
@click.option("--max-length", type=COUNT, metavar="NUMBER", help="Tokens of a text, at most; default: 128.")
@click.option("--seed", type=SEED, default=0, metavar="NUMBER", help="Of trials, texts and training; default: 0.")
@shared.recipe_options("task", *shared.GIVEN_OPTIONS)
@shared.JSON
def search(reference: str, out: Path, force: bool, resume: bool, as_json: bool, **given: Any) -> None:
    """Find the student of MODEL that keeps most of it within --latency or --size, and write it as a directory for `bertc build`.

    Layers, heads, FFN neurons and precision are searched. One network is trained whose parts are all candidates; trials judge
    them without training and sum up their cost from a table, measured on this machine; the best are trained on and measured for
    themselves. search.json and search.html hold the front of quality and cost, every trial and the table.

    Ctrl-C writes nothing but OUT.search, the table and the trained network: --resume goes on from it. Needs Optuna.
    """
    from .. import search as searching
    from ..source import SourceOptions

    source = {name: given.pop(name) for name in ("task", *shared.GIVEN_OPTIONS)}
    if source.pop("adapter"):
        raise InputError("--adapter: merge it first: a model is one checkpoint (PEFT's merge_and_unload, then save_pretrained)")
    options = SourceOptions(**{name: value for name, value in source.items() if value is not None})
    request = searching.Request(reference, options=options, **given)
    made = searching.search(request, out, force=force, resume=resume, progress=progress())
    console().print(_table(made.document))
    print_result(f"{made.path}: {made.document['summary']}")
    chosen = made.document["chosen"]
    print_result(f"build it: bertc build {made.path} --target {request.target}={chosen['precision']} -o {made.path}-built")
    if as_json:
        print_json(made.document)


def _table(document: dict[str, Any]) -> Table:
    """The front, thinned out where it is long; the limit lies where `within` ends."""
    from ..report import Table

    latency = document["budget"]["kind"] == "latency"
    rows = Table("trial", "layers", "heads", "FFN", "precision", "quality", "ms" if latency else "MB", "within", "chosen")
    every = max(1, -(-len(document["front"]) // SHOWN))
    chosen = document["chosen"]["trial"]
    for at, number in enumerate(document["front"]):
        each = document["trials"][number]
        if at % every and number != chosen:
            continue
        cost = each["milliseconds"] if latency else each["weight_bytes"] / 1e6
        shape = [" ".join(map(str, each[name])) for name in ("layers", "heads", "ffn")]
        marks = ("yes" if each["within"] else "no", "*" if number == chosen else "")
        rows.add(str(number), *shape, each["precision"], f"{each['quality']:.4f}", f"{cost:.3g}", *marks)
    return rows
