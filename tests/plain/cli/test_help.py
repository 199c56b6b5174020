"""Help: commands under headings, summaries that fit, metavars that say what is taken, examples that can be typed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from bertc.cli import _group as commands
from bertc.cli import cli, run

Capture = pytest.CaptureFixture[str]


def below(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """The command and all below it, each with the words that call it."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from below(found, (*path, name))


EVERY = dict(below(cli))
PATHS = pytest.mark.parametrize("path", EVERY, ids=lambda path: " ".join(("bertc", *path)))


def help_of(path: tuple[str, ...], width: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    assert run([*path, "--help"]) == 0
    return capsys.readouterr().out.splitlines()


def test_each_command_stands_under_its_heading(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = help_of((), 80, capsys, monkeypatch)
    heading, found = "", {}
    for line in lines:
        heading = line.removesuffix(":") if line and not line.startswith(" ") else heading
        if heading in commands.SECTIONS and line.startswith("  "):
            found[line.split()[0]] = heading
    assert found == {name: commands.section_of(name) for name in commands.names()}
    assert set(found.values()) == set(commands.SECTIONS), "a heading that no command stands under"


@pytest.mark.parametrize("width", [80, 120])
@PATHS
def test_no_summary_is_cut_and_nothing_is_too_wide(
    path: tuple[str, ...], width: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = help_of(path, width, capsys, monkeypatch)
    assert [line for line in lines if len(line) > 80 and width == 80] == []
    assert [line for line in lines if line.endswith("...") and not line.startswith(("Usage", " " * 10))] == []
    command = EVERY[path]
    if isinstance(command, click.Group):
        for name, _ in below(command):
            if name:
                summary = EVERY[(*path, *name)].short_help
                assert summary and (len(name) > 1 or any(line.split(maxsplit=1)[1:] == [summary] for line in lines))


@PATHS
def test_options_say_what_they_take(path: tuple[str, ...], capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n".join(help_of(path, 80, capsys, monkeypatch))
    assert re.findall(r"^  -\S.* (?:TEXT|INTEGER|FLOAT|PATH|FILENAME)\b", text, re.MULTILINE) == []
    for option in EVERY[path].params:
        if isinstance(option, click.Option):
            assert option.help and option.help[0] != " ", f"{option.name} has no help"


@PATHS
def test_examples_can_be_typed(path: tuple[str, ...], capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two at the end of each help, each a command line that click takes."""
    lines = help_of(path, 80, capsys, monkeypatch)
    examples = [line.strip() for line in lines[lines.index("Examples:") + 1 :] if line.startswith("  bertc ")]
    assert len(examples) == 2
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".bertc-store").mkdir()  # the one path that click itself looks for
    for example in examples:
        words = shlex.split(example)[1:]
        assert tuple(words[: len(path)]) == path, "an example of another command"
        parse(cli, "bertc", words)


def parse(command: click.Command, name: str, words: list[str], parent: click.Context | None = None) -> None:
    """Parse a command line to its last command, and run nothing."""
    with command.make_context(name, list(words), parent=parent) as context:
        if isinstance(command, click.Group):
            rest = [*context._protected_args, *context.args]
            assert rest, "a group is no command line"
            below, found, more = command.resolve_command(context, rest)
            assert found is not None
            parse(found, str(below), more, context)


CHOICES = {
    ("build",): ("--ids [int64|int32]", "--goldens [synthetic|data]", "--target NAME[:SM,...][=PRECISION]", "sentence-embedding"),
    ("export",): ("--task TASK", "question-answering"),
    ("calibrate",): ("--method [minmax|percentile|entropy|mse]", "--target NAME[:SM,...] "),
    ("fuse",): ("--expect FAMILY[:LAYERS]",),
    ("fleet", "build"): ("--until [export|fuse|quantise|build]", "--jobs NUMBER"),
    ("list",): ("[targets|recipes|precisions|gpus]",),
}


@pytest.mark.parametrize("path", CHOICES, ids=" ".join)
def test_closed_sets_are_shown(path: tuple[str, ...], capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(" ".join(help_of(path, 80, capsys, monkeypatch)).split()).replace("- ", "-") + " "
    for shown in CHOICES[path]:
        assert shown in text


WRONG = [
    ("build m -o o --ids int46", "--ids", "did you mean 'int64'?"),
    ("build m -o o --goldens real", "--goldens", "known: data, synthetic"),
    ("build m -o o --task featurs", "--task", "did you mean 'features'?"),
    ("build m -o o --target onnxruntim", "--target", "did you mean 'onnxruntime'?"),
    ("build m -o o --target tensorrt-rtx:sm88", "--target", "did you mean 'sm89'?"),
    ("build m -o o --target null=fp61", "--target", "did you mean 'fp16'?"),
    ("build m -o o --expect brt", "--expect", "did you mean 'bert'?"),
    ("fuse m.onnx -o o --expect bert:six", "--expect", "bert:6"),
    ("calibrate m -o o --method minmx", "--method", "did you mean 'minmax'?"),
    ("calibrate m -o o --target onnxruntime=fp16", "--target", "names a precision"),
]


@pytest.mark.parametrize(("line", "option", "hint"), WRONG, ids=[line for line, *_ in WRONG])
def test_a_wrong_value_is_told_the_nearest(line: str, option: str, hint: str, capsys: Capture) -> None:
    assert run(line.split()) == 2
    err = " ".join(capsys.readouterr().err.split())
    assert f"'{option}'" in err
    assert hint in err
