"""The commands and snippets of README.md and docs/ run as they are printed there.

Every page has a directory of its own, which begins with what a reader has at hand by then: some data, and the export and the
artifacts that README.md builds. A line that an earlier page has runs once: what it built is linked into the later page.
CHECKPOINT is all-MiniLM-L6-v2 with two of its six layers (test_minilm.py has them all): what is tried is that every line works.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import shallow
from markdown_it import MarkdownIt

from bertc.cli import run

ROOT = Path(__file__).parent.parent.parent
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md"))]
BASE = (
    "bertc export CHECKPOINT -o out/export",
    "bertc build out/export --target onnxruntime=fp32 --target tensorrt-rtx:sm89=fp16 -o out/minilm",
)
SHELL, RUN = "sh", ("sh", "python", "toml")
NAMED = re.compile(r"# ([\w-]+\.(?:py|toml))\n")


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of every block that is to run."""
    found = MarkdownIt("commonmark").parse((ROOT / page).read_text("utf-8"))
    return [(token.info, token.content) for token in found if token.type == "fence" and token.info in RUN]


class Desk:
    """Directories of pages, and what was built in any of them."""

    def __init__(self, place: Path, checkpoint: Path, texts: list[str]) -> None:
        self.place, self.checkpoint, self.texts = place, checkpoint, texts
        self.done: dict[str, Path | None] = {}  # what it built, by line
        self.files: dict[str, str] = {}  # that pages write, by name: the same line means the same everywhere

    def folder(self, page: str) -> Path:
        """A page's own directory. README.md builds everything itself."""
        made = self.place / page.replace("/", "-")
        made.mkdir()
        pairs = [{"text": a, "text_pair": b, "label": float(len(a))} for a, b in itertools.pairwise(self.texts)]
        (made / "texts.txt").write_text("".join(f"{text}\n" for text in self.texts), encoding="utf-8")
        (made / "requests.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in self.texts), encoding="utf-8")
        (made / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
        return made

    def adapter(self) -> Path:
        """A LoRA adapter of the checkpoint, as PEFT saves it."""
        import peft
        import transformers

        made = self.place / "adapter"
        if not made.is_dir():
            base = transformers.AutoModel.from_pretrained(self.checkpoint)
            tuned = peft.get_peft_model(base, peft.LoraConfig(target_modules=["query"], r=2, init_lora_weights=False))
            tuned.save_pretrained(made)
        return made

    def command(self, line: str, folder: Path) -> None:
        """One line of a shell block, in the current directory `folder`."""
        adapter = str(self.adapter()) if "ADAPTER" in line else ""
        words = shlex.split(line.replace("CHECKPOINT", str(self.checkpoint)).replace("ADAPTER", adapter))
        assert words[0] == "bertc", line
        out = folder / words[words.index("-o") + 1] if words[1] in ("export", "build") else None
        if line not in self.done:
            assert run(words[1:]) == 0, line
            self.done[line] = out
        elif built := self.done[line]:
            shutil.copytree(built, out, copy_function=_linked)


def _linked(source: str, name: str) -> None:
    Path(name).hardlink_to(source)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, minilm: Path, texts: Path) -> Desk:
    place = tmp_path_factory.mktemp("pages")
    return Desk(place, shallow.checkpoint(minilm, place / "checkpoint", layers=2), texts.read_text("utf-8").splitlines())


@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks in order: later ones use what earlier ones made."""
    folder = desk.folder(page)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    found = blocks(page)
    own = {line for language, text in found if language == SHELL for line in text.splitlines()}
    for line in BASE if found else ():
        if line not in own:
            desk.command(line, folder)
    for number, (language, text) in enumerate(found):
        execute(language, text, f"{page}, block {number}", folder, desk)


def execute(language: str, text: str, where: str, folder: Path, desk: Desk) -> None:
    name = NAMED.match(text)
    assert name or language != "toml", f"{where} names no file in its first line"
    if language == "toml":
        tomllib.loads(text)
    if name:
        assert desk.files.setdefault(name[1], text) == text, f"{where}: another page has another {name[1]}"
        (folder / name[1]).write_text(text, encoding="utf-8")
    elif language == "python":
        exec(compile(text, where, "exec"), {"__name__": "page"})
    else:
        for line in filter(None, text.splitlines()):
            desk.command(line, folder)


def test_the_readme_shows_what_runs() -> None:
    shown = (ROOT / "README.md").read_text("utf-8")
    lines = [line for language, text in blocks("README.md") if language == SHELL for line in text.splitlines()]
    assert set(BASE) < set(lines)
    assert "make demo" in shown and "make test" in shown
