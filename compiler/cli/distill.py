"""bertc distill TEACHER --data texts.txt -o STUDENT: a smaller model that gives what its teacher gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core import InputError
from . import _shared as shared
from ._command import Command
from ._output import console, print_json, print_result, progress
from ._types import COUNT, INPUT, SEED, Number, OneOf, Source

if TYPE_CHECKING:
    from ..report import Table

SECTION = "Build"
EXAMPLES = (
    "bertc distill minilm --layers 3 --data texts.txt -o out/student",
    "bertc distill TEACHER1 TEACHER2 --weights 0.7,0.3 --data texts.txt -o STUDENT",
)


def _losses() -> Sequence[str]:
    from ..distill import LOSSES

    return LOSSES


def _precisions() -> Sequence[str]:
    from ..distill import PRECISIONS

    return PRECISIONS


@click.command(cls=Command, short_help="Make a smaller student of a teacher", examples=EXAMPLES)
@click.argument("references", metavar="TEACHER...", nargs=-1, required=True, type=Source())
@shared.OUT_DIRECTORY
@click.option("--force", is_flag=True, help="Replace a student that is there, and begin an unfinished training again.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint of a training that was interrupted.")
@click.option("--data", type=INPUT, metavar="FILE", help="Texts, or pairs, to learn from: .txt, .jsonl, .csv, .tsv.")
@click.option("--labels", type=INPUT, metavar="FILE", help="Labelled rows to learn from as well (fine-tuning).")
@click.option("--held-out", type=INPUT, metavar="FILE", help="Texts to judge by; default: 5 % of the others, by their hash.")
@click.option("--pairs", type=INPUT, metavar="FILE", help="Pairs (text, text_pair) to judge retrieval by: MRR@10.")
@click.option("--layers", type=COUNT, metavar="NUMBER", help="Layers of the student; default: the teacher's (self-distillation).")
@click.option("--width", type=COUNT, metavar="NUMBER", help="Width of its hidden states; default: the teacher's.")
@click.option("--ffn", type=COUNT, metavar="NUMBER", help="Neurons of its feed-forward networks; default: the teacher's.")
@click.option("--layer-map", metavar="RULE|N,N", help="Which layers: even, first, last, search, or 1,3,5; default: even.")
@click.option("--loss", multiple=True, metavar="NAME=WEIGHT", help="In place of the default losses; repeatable. See above.")
@click.option("--weights", metavar="W,W", help="Weights of several teachers; default: all the same.")
@click.option("--temperature", type=Number(0.001, 1000), metavar="NUMBER", help="Of softened logits; default: 2.")
@click.option("--epochs", type=Number(0), metavar="NUMBER", help="Passes over the texts; default: 1.")
@click.option("--steps", type=COUNT, metavar="NUMBER", help="Steps, in place of --epochs.")
@click.option("--batch", type=COUNT, metavar="NUMBER", help="Texts a step; default: 32.")
@click.option("--max-length", type=COUNT, metavar="NUMBER", help="Tokens of a text, at most; default: 128.")
@click.option("--learning-rate", type=Number(0, 1), metavar="NUMBER", help="The highest one; default: 4e-4.")
@click.option(
    "--patience", type=COUNT, metavar="NUMBER", help="Evaluations (10 at most) without progress that end it; default: 4."
)
@click.option("--precision", type=OneOf("precision", _precisions), help="Of the training; auto: bf16 where it is fast.")
@click.option("--device", metavar="NAME", help="auto, cpu or cuda; default: auto.")
@click.option("--checkpoint-seconds", type=Number(0), metavar="SECONDS", help="Time between checkpoints; default: 60.")
@click.option("--seed", type=SEED, metavar="NUMBER", help="Of order, masks and new weights; default: 0.")
@shared.recipe_options("task", *shared.GIVEN_OPTIONS)
@shared.JSON
def distill(
    references: Sequence[str],
    out: Path,
    force: bool,
    resume: bool,
    data: Path | None,
    labels: Path | None,
    held_out: Path | None,
    pairs: Path | None,
    loss: Sequence[str],
    weights: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Cut a student out of TEACHER (its layers, its width), teach it, and write it as a directory that `bertc build` takes.

    The student holds distillation.json and distillation.html: what it lost by which measure, with intervals, against the student
    before its training. Several TEACHERs share a task; one may be a reranker beside sentence embeddings (--data then has pairs).

    Losses: cosine, similarity (vectors of texts); logits, labels (classes); tokens, masked-lm; embedding, hidden, attention,
    relations (between layers); margin (a reranker's scores). The default is what measured best for the teacher's task.
    """
    from .. import distill as distilling
    from ..source import SourceOptions

    source = {name: given.pop(name) for name in ("task", *shared.GIVEN_OPTIONS)}
    if source.pop("adapter"):
        raise InputError("--adapter: merge it first: a teacher is one checkpoint (PEFT's merge_and_unload, then save_pretrained)")
    options = SourceOptions(**{name: value for name, value in source.items() if value is not None})
    chosen = {name: value for name, value in given.items() if value is not None}
    settings = distilling.Settings(losses=_weights_of(loss), teacher_weights=_numbers(weights), **chosen)
    request = distilling.Request(tuple(references), data, labels, held_out, pairs, options)
    made = distilling.distill(request, out, settings, force=force, resume=resume, progress=progress())
    console().print(_table(made.document))
    print_result(f"{made.path}: {made.document['summary']}")
    if as_json:
        print_json(made.document)


def _weights_of(texts: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if name in found:
            raise InputError(f"--loss {name} is given twice; give it once")
        try:
            found[name] = float(value) if equals else 1.0
        except ValueError as error:
            raise InputError(f"--loss {text!r} is not NAME=WEIGHT, as in hidden=0.5") from error
    return found


def _numbers(text: str | None) -> tuple[float, ...]:
    try:
        return tuple(map(float, text.split(","))) if text else ()
    except ValueError as error:
        raise InputError(f"--weights {text!r} is not W,W: one number a teacher, as in 0.7,0.3") from error


def _table(document: dict[str, Any]) -> Table:
    from ..report import Table

    rows = Table("measure", "teacher", "untrained cut", "student", "95 % interval", "texts")
    pairs = zip(document["quality"]["untrained"], document["quality"]["student"], strict=True)
    for untrained, trained in pairs:
        interval = "-" if trained["low"] is None else f"{trained['low']:.4f} to {trained['high']:.4f}"
        numbers = (f"{untrained['value']:.4f}", f"{trained['value']:.4f}", interval, str(trained["rows"]))
        rows.add(trained["name"], "1", *numbers)
    for each in document["quality"]["tasks"]:
        interval = "-" if each["low"] is None else f"drop {each['low']:.4f} to {each['high']:.4f}"
        values = [f"{each[name]:.4f}" for name in ("teacher", "untrained", "student")]
        rows.add(each["name"], *values, interval, str(each["rows"]))
    return rows
