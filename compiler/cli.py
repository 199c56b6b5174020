"""The command line: parse, one call, print. Heavy imports sit inside the commands, so that `bertc --help` is instant.

Data goes to stdout (`--json`), everything a person reads to stderr. Exit codes: 0 done, 1 the check or the build failed,
2 bad input or usage, 3 something the machine lacks, 4 a bug in bertc, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .errors import BertcError, CheckFailed, InputError

if TYPE_CHECKING:
    from rich.console import Console

    from .progress import Progress
    from .recipe import Recipe

Command = Callable[..., Any]
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="bertc", prog_name="bertc")
def cli() -> None:
    """Compile distilled PyTorch encoders to ONNX Runtime and TensorRT engines, and prove them equal to the source."""


def recipe_options(*names: str) -> Callable[[Command], Command]:
    """Options made from the fields of Recipe, so that a recipe file and the command line cannot drift apart."""

    def decorate(command: Command) -> Command:
        from .recipe import Recipe

        fields = {f.name: f for f in dataclasses.fields(Recipe)}
        for name in reversed(names):
            command = _option(fields[name])(command)
        return command

    return decorate


def _option(field: Any) -> Callable[[Command], Command]:
    kind, help_text = str(field.type), field.metadata["help"]
    flag = "--" + field.name.replace("_", "-")
    if field.name in ("verify", "fuse", "prove"):
        return click.option(f"--{field.name}/--no-{field.name}", default=None, help=help_text)
    if kind == "bool":
        return click.option(flag, is_flag=True, default=None, help=help_text)
    if kind.startswith(("tuple", "Mapping")):
        return click.option("--" + field.name.removesuffix("s"), field.name, multiple=True, help=help_text)
    return click.option(flag, field.name, type=int if kind == "int" else str, default=None, help=help_text)


MODEL_OPTIONS = ("task", "revision", "allow_pickle", "trust_remote_code", "ids", "opset")
SOURCE_OPTIONS = (*MODEL_OPTIONS, "seed", "goldens", "data")


@cli.command()
@click.argument("reference", metavar="SOURCE")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="the directory to write")
@click.option("--force", is_flag=True, help="replace an artifact that is there")
@recipe_options(*SOURCE_OPTIONS)
@JSON
def export(reference: str, out: Path, force: bool, as_json: bool, **options: Any) -> None:
    """Export SOURCE to a checked ONNX graph with goldens: what `bertc build` can start from without PyTorch."""
    from . import pipeline

    log = _progress()
    made = pipeline.export(_recipe(reference, log, options), out, force=force, progress=log)
    _show_artifacts((made,), as_json)


@cli.command()
@click.argument("reference", metavar="SOURCE|RECIPE|EXPORT")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="the directory to write")
@click.option("--force", is_flag=True, help="replace an artifact that is there")
@click.option("--fp32", "precision", flag_value="fp32", help="float32, TF32 off")
@click.option("--fp16", "precision", flag_value="fp16", help="float16, reductions in float32")
@click.option("--bf16", "precision", flag_value="bf16", help="bfloat16, reductions in float32")
@recipe_options("targets", "profiles", "source", *SOURCE_OPTIONS, "fuse", "prove", "expect", "budget", "verify")
@JSON
def build(reference: str, out: Path, force: bool, as_json: bool, **options: Any) -> None:
    """Build SOURCE for one or more targets and verify each artifact before it is written.

    SOURCE is a path (checkpoint directory, .onnx, export, recipe.toml), a recipe's name, package.module:factory, or a hub id.
    """
    from . import pipeline

    log = _progress()
    made = pipeline.compile(_recipe(reference, log, options), out, force=force, progress=log)
    _show_artifacts(made, as_json)


@cli.command()
@click.argument("artifact", type=click.Path(path_type=Path), metavar="ARTIFACT")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="texts (.txt, .jsonl, .csv, .tsv), with labels or without, arrays (.npz) or a directory of .wav",
)
@click.option("--against", help="compare with this source instead of the one it was built from")
@click.option("--require-engine", is_flag=True, help="exit 3 where the engine itself cannot run")
@click.option("--budget", multiple=True, help="a limit, as in cosine=0.9999; repeatable")
@click.option("--max-drop", type=float, help="how much worse the task's metric may be: exit 1 unless the data shows it")
@JSON
def verify(
    artifact: Path,
    data: Path | None,
    against: str | None,
    require_engine: bool,
    budget: Sequence[str],
    max_drop: float | None,
    as_json: bool,
) -> None:
    """Compare ARTIFACT with its source: on its goldens, or on --data. Exit 1 when it is over its budget, or undecided.

    With a `label` in each row of --data the task's metric is told for both, with a 95 % interval for the drop.
    """
    from . import report
    from .verification import verify as run

    log = _progress()
    limits = _limits(budget) if budget else None
    limits = limits if max_drop is None else (limits or {}) | {"max_drop": max_drop}
    verdicts = run(artifact, data_path=data, against=against, require_engine=require_engine, budget=limits, progress=log)
    console = _console()
    console.print(f"{artifact} on {verdicts[0].data}", highlight=False, markup=False)
    console.print(report.verdicts_table(verdicts))
    if (metrics := report.metrics_table(verdicts)) is not None:
        console.print(metrics)
    for verdict in verdicts:
        console.print(f"{verdict.path}: {verdict.summary()}", highlight=False, markup=False)
        for note in verdict.notes:
            console.print(f"  note {note}", highlight=False, markup=False)
    if as_json:
        _print_json({"artifacts": [verdict.to_json() for verdict in verdicts], "passed": all(v.passed for v in verdicts)})
    failed = [v for v in verdicts if not v.passed]
    if failed:
        reasons = "; ".join(f"{v.path} is {v.shortfall()}: {v.reasons()}" for v in failed)
        click.echo(f"error: {reasons}", err=True)
        raise click.exceptions.Exit(CheckFailed.exit_code)  # not CheckFailed: the JSON document is printed already


@cli.command()
@click.argument("path", type=click.Path(path_type=Path), metavar="IN.onnx")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="the .onnx file to write")
@click.option("--force", is_flag=True, help="replace a file that is there")
@click.option("--rules", "rules_file", type=click.Path(path_type=Path), help="a Python file with RULES of your own; it is run")
@click.option(
    "--explain", is_flag=False, flag_value="", default=None, metavar="[RULE]", help="show near-misses and why they stopped"
)
@click.option("--expect", metavar="FAMILY[:LAYERS]", help="exit 1 unless all that this family promises was found")
@click.option("--prove/--no-prove", default=True, help="replay each match against what takes its place")
@JSON
def fuse(
    path: Path,
    out: Path,
    force: bool,
    rules_file: Path | None,
    explain: str | None,
    expect: str | None,
    prove: bool,
    as_json: bool,
) -> None:
    """Fuse an ONNX file (opset 11 on) into bertc operators, each proven equal; it carries their bodies and runs anywhere."""
    from . import fuse as fusing
    from . import report

    log = _progress()
    with log.stage("fuse"):
        before, fused = fusing.fuse_file(path, out, force=force, prove=prove, rules_file=rules_file)
    for note in (*fused.notes, *(() if prove else ("nothing was proven (--no-prove)",))):
        log.note(note)
    _console().print(report.fusions_table(fused.change))
    shown = fused.change.refusals if explain is not None else ()
    for refusal in (r for r in shown if explain in ("", r.rule)):
        log.say(f"  {refusal}")
    if as_json:
        _print_json(fusing.to_json(fused, before))
    if expect:
        fusing.expect(before, fused.change, expect)


@cli.command()
@click.argument("references", metavar="SOURCE | --merge RANGES...", nargs=-1, required=True)
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="the file of ranges to write, as ranges.json")
@click.option("--force", is_flag=True, help="replace a file that is there")
@click.option("--data", type=click.Path(path_type=Path), help="texts (.txt, .jsonl), arrays (.npz) or a directory of .wav")
@click.option("--merge", is_flag=True, help="make one of several files of ranges, each from its own part of the data")
@click.option("--target", help="name tensors as in the graph lowered for this target, not as in the source's own graph")
@click.option("--method", default="percentile", show_default=True, help="minmax, percentile, entropy or mse; all are listed")
@click.option("--percentile", default=99.99, show_default=True, help="of the magnitudes, for that method")
@click.option("--outlier", default=10.0, show_default=True, help="list channels this many times above the median channel")
@click.option(
    "--shard", "part", default="1/1", help="calibrate one part of the data: 1/4 is every fourth sample; --merge the files"
)
@click.option("--tensor", "also", multiple=True, help="measure tensors of this name too (* matches anything); repeatable")
@click.option(
    "--per-channel", "by_channel", multiple=True, help="ranges per channel for tensors or modules so called; repeatable"
)
@click.option("--checkpoint", default=30.0, show_default=True, help="seconds between checkpoints, from which a run goes on")
@click.option("--restart", is_flag=True, help="begin anew in place of going on from the checkpoint of an interrupted run")
@recipe_options(*MODEL_OPTIONS)
@JSON
def calibrate(
    references: Sequence[str], out: Path, force: bool, data: Path | None, merge: bool, as_json: bool, **options: Any
) -> None:
    """Measure the ranges of SOURCE's activations over --data in one pass, for INT8. An interrupted run goes on where it was."""
    from . import calibrate as calibration

    log = _progress()
    if merge:
        found = calibration.merge([Path(name) for name in references], out, force=force)
    elif len(references) > 1:
        raise InputError(f"one SOURCE at a time: {' '.join(references)}; to make one of several files of ranges say --merge")
    elif data is None:
        raise InputError("calibration needs data that is like what the model will see: --data texts.txt")
    else:
        recipe = _recipe(references[0], log, {name: options.pop(name) for name in MODEL_OPTIONS})
        restart = options.pop("restart")
        request = calibration.request(data, **options)
        found = calibration.calibrate(
            recipe.source, request, out, options=recipe.source_options, force=force, restart=restart, progress=log
        )
    _console().print(calibration.table(found))
    log.say(f"{out}: {calibration.summary(found)}")
    if as_json:
        _print_json(calibration.overview(found))


@cli.command()
@click.argument("path", type=click.Path(path_type=Path), metavar="ARTIFACT|MODEL.onnx")
@click.option("--kernels", is_flag=True, help="list every kernel of an engine")
@JSON
def inspect(path: Path, kernels: bool, as_json: bool) -> None:
    """Show inputs and outputs, operators and their precision, an engine's kernels by layer, and the manifest."""
    from . import inspection

    found = inspection.examine(path)
    inspection.show(found, _console(), kernels)
    if as_json:
        _print_json(found)


@cli.command()
@JSON
def doctor(as_json: bool) -> None:
    """Say what this machine has: targets available or the reason why not, versions, GPUs."""
    from . import doctor as examination

    found = examination.examine()
    examination.show(found, _console())
    if as_json:
        _print_json(found)


def _console() -> Console:
    from rich.console import Console

    console = Console(stderr=True)
    # A table in a log file is cut at 80 columns, and numbers are what it is for.
    return console if console.is_terminal else Console(stderr=True, width=160)


def _progress() -> Progress:
    from .progress import Progress

    return Progress(_console())


def _recipe(reference: str, log: Progress, options: dict[str, Any]) -> Recipe:
    """What SOURCE means, with the options that were given put over it."""
    from . import recipe as recipes

    found, meaning = recipes.resolve(reference)
    log.say(meaning)
    given = {k: v for k, v in options.items() if v is not None and v != ()}
    if "budget" in given:
        given["budget"] = _limits(given["budget"])
    if given.get("precision") and not given.get("targets"):
        given["targets"] = tuple(text.partition("=")[0] for text in found.targets)
    return dataclasses.replace(found, **given)


def _limits(texts: Sequence[str]) -> dict[str, float]:
    limits = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            limits[name] = float(value)
        except ValueError as error:
            raise InputError(f"budget {text!r} is not NAME=NUMBER, as in cosine=0.9999") from error
    return limits


def _show_artifacts(made: Sequence[Any], as_json: bool) -> None:
    from . import report

    _console().print(report.artifacts_table(made))
    if as_json:
        _print_json({"artifacts": [{"path": str(a.path), "manifest": a.manifest} for a in made]})


def _print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=1, ensure_ascii=False))


@contextlib.contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM ends a build as Ctrl-C does: what is half-written is removed."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; errors are printed, never raised."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _terminated():
            # What a command returns is None; an Exit comes back as its code.
            return int(cli.main(args=words, prog_name="bertc", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        return _failed(words, error.format_message(), 2)
    except BertcError as error:
        click.echo(f"error: {error}", err=True)
        return _failed(words, str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort) as error:
        said = f"interrupted: {_reason(error) or 'nothing was written'}"
        click.echo(said, err=True)
        return _failed(words, said, 130)
    except OSError as error:
        # On a disk that is quite full, Python finds no folder for temporary files and says so with another number.
        full = error.errno in NO_ROOM or "No usable temporary directory" in str(error)
        return _disk_full(words, error) if full else _bug(words, error)
    except Exception as error:  # noqa: BLE001 - the last resort: said as a bug, with its traceback, never hidden
        return _bug(words, error)


def _reason(error: BaseException) -> str:
    """What a command said when it was interrupted; click puts an Abort in the place of its exception."""
    return str(error if isinstance(error, KeyboardInterrupt) else error.__cause__ or "")


def _disk_full(words: Sequence[str], error: OSError) -> int:
    """Room ran out elsewhere than at the output: in the folder for temporary files."""
    message = f"no room for temporary files: {error}; free some space, or let the variable TMPDIR name a folder on another disk"
    click.echo(f"error: {message}", err=True)
    return _failed(words, message, 3)


def _bug(words: Sequence[str], error: Exception) -> int:
    import traceback

    traceback.print_exception(error)
    click.echo(f"error: this is a bug in bertc ({type(error).__name__}: {error}); please report the lines above", err=True)
    return _failed(words, f"{type(error).__name__}: {error}", 4)


def _failed(words: Sequence[str], message: str, code: int) -> int:
    if "--json" in words:
        _print_json({"error": message, "exit_code": code})
    return code
