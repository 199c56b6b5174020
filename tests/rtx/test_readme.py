"""The commands and snippets of the README run as they are printed there."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from bertc.cli._main import run

README = (Path(__file__).parent.parent.parent / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```(sh|python|toml)\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    place = tmp_path_factory.mktemp("readme")
    (place / "texts.txt").write_text(texts.read_text("utf-8"), encoding="utf-8")
    requests = "".join(json.dumps({"text": text}) + "\n" for text in texts.read_text("utf-8").splitlines())
    (place / "requests.jsonl").write_text(requests, encoding="utf-8")
    return place


def test_there_is_something_to_run() -> None:
    assert len(BLOCKS) >= 4
    assert "make demo" in README
    assert "make test" in README


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block(number: int, folder: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order: later blocks use what earlier ones made."""
    language, text = BLOCKS[number]
    monkeypatch.chdir(folder)
    if name := re.match(r"# (\w+\.(?:py|toml))\n", text):
        (folder / name[1]).write_text(text, encoding="utf-8")
        return
    if language == "python":
        exec(compile(text, f"README block {number}", "exec"), {"__name__": "readme"})
        return
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    for line in filter(None, text.splitlines()):
        words = shlex.split(line.replace("CHECKPOINT", str(minilm)))
        assert words[0] == "bertc", line
        assert run(words[1:]) == 0, line
