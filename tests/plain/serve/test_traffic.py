"""Requests read from files, and `bertc profile`: its table, its plot, its recipe, and what it says of a broken line."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import tiny

from bertc import recipe
from bertc.cli import _main as cli
from bertc.core.errors import DataError, RecipeError
from bertc.data.tokenizer import Encoder
from bertc.serve import recipe_edit as recipe_file
from bertc.serve import traffic

Capture = pytest.CaptureFixture[str]
COMMENTED = """# a recipe of ours
source = "m.onnx"  # the model
profiles = [  # measured in June [see the wiki]
    "batch=1:8:32,length=1:128:256",  # ] not the end
]
ids = "int32"

[budget]
cosine = 0.999
"""


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.write_tokenizer(folder)
    return Encoder.from_directory(folder, 6)


# Reading


def test_lengths_with_and_without_counts(tmp_path: Path) -> None:
    found = traffic.read_traffic(write(tmp_path / "l.txt", "5", "7 10", "", "5 2"))
    assert found.longest.tolist() == [5, 7] and found.count.tolist() == [3, 10]
    assert found.batch.tolist() == [1, 1] and found.tokens.tolist() == [15, 70]


def test_batches_keep_their_size_their_longest_and_their_tokens(tmp_path: Path) -> None:
    lines = [{"lengths": [3, 9], "at": "12:00"}, {"lengths": [9, 1], "count": 2}, {"length": 9}]
    found = traffic.read_traffic(write(tmp_path / "r.jsonl", *lines))
    shapes = list(zip(found.batch.tolist(), found.longest.tolist(), found.count.tolist(), found.tokens.tolist(), strict=True))
    assert shapes == [(1, 9, 1, 9), (2, 9, 3, 32)]
    assert found.padded_in_batches == 3 * 18 - 32


def test_texts_are_tokenized_and_cut_texts_are_said(tmp_path: Path, encoder: Encoder) -> None:
    """[CLS] and [SEP] are added; six tokens fit."""
    lines = [{"text": "two words"}, {"texts": ["two", "two words and"], "count": 3}, {"text": "two", "text_pair": "and"}]
    found = traffic.read_traffic(write(tmp_path / "r.jsonl", *lines, {"text": "two words and more words"}), None, encoder)
    shapes = dict(zip(zip(found.batch.tolist(), found.longest.tolist(), strict=True), found.tokens.tolist(), strict=True))
    assert shapes == {(1, 4): 4, (2, 5): 3 * 8, (1, 5): 5, (1, 6): 6}
    assert any("1 of 5 texts were longer than 6 tokens" in note for note in found.notes)


def test_more_texts_than_are_tokenized_at_once_keep_their_requests(tmp_path: Path, encoder: Encoder) -> None:
    lines = [{"texts": ["two"] * (i % 3 + 1)} for i in range(traffic.TOGETHER)]
    found = traffic.read_traffic(write(tmp_path / "r.jsonl", *lines), None, encoder)
    assert dict(zip(found.batch.tolist(), found.count.tolist(), strict=True)) == {1: 86, 2: 85, 3: 85}
    assert found.tokens.sum() == 3 * (86 + 2 * 85 + 3 * 85)


BROKEN = [
    ("l.txt", "17 x", "l.txt:2 is '17 x'; wanted LENGTH or LENGTH COUNT"),
    ("l.txt", "1 2 3", "l.txt:2 is '1 2 3'"),
    ("l.txt", "0", "l.txt:2 has a length of 0"),
    ("l.txt", "-4", "l.txt:2 is '-4'"),
    ("l.txt", "9 0", "l.txt:2 has a count of 0"),
    ("l.txt", "65", "l.txt:2 has a length of 65, over the longest, 64"),
    ("r.jsonl", '{"length": 3', "r.jsonl:2 cannot be read: it is no JSON"),
    ("r.jsonl", "[3]", "r.jsonl:2: $ is a list ([3]), wants an object"),
    ("r.jsonl", '{"lenght": 3}', "r.jsonl:2 has lenght; wanted one of length, lengths, text, texts"),
    ("r.jsonl", '{"length": 3, "text": "a"}', "wanted one of"),
    ("r.jsonl", '{"length": true}', "'length' of True; wanted a whole number"),
    ("r.jsonl", '{"lengths": []}', "'lengths' of []; wanted a list of whole numbers, one or more"),
    ("r.jsonl", '{"lengths": [3, 0]}', "r.jsonl:2 has a length of 0"),
    ("r.jsonl", '{"length": 3, "count": 1.5}', "a count of 1.5"),
    ("r.jsonl", '{"texts": ["a", 3]}', "in 'texts' a list of strings or pairs"),
    ("r.jsonl", '{"text": "a"}', "r.jsonl:2 holds text, and there is no tokenizer for it; give --source"),
]


@pytest.mark.parametrize(("name", "line", "said"), BROKEN, ids=[line for _, line, _ in BROKEN])
def test_a_broken_line_is_named(name: str, line: str, said: str, tmp_path: Path) -> None:
    first = "5" if name.endswith("txt") else '{"length": 5}'
    with pytest.raises(DataError) as error:
        traffic.read_traffic(write(tmp_path / name, first, line), 64)
    assert said in str(error.value)


def test_nothing_to_choose_by_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no requests"):
        traffic.read_traffic(write(tmp_path / "l.txt", "", " "))
    with pytest.raises(DataError, match="divide them by a common number"):
        traffic.read_traffic(write(tmp_path / "l.txt", f"512 {2**52}"))


# A recipe


def test_only_the_profiles_of_a_recipe_change(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(COMMENTED, encoding="utf-8")
    said = recipe_file.set_profiles(path, ["batch=1:1:4,length=1:16:16", "batch=1:1:1,length=17:64:64"])
    text = path.read_text("utf-8")
    assert "2 profiles, before: 1" in said
    assert recipe.read(path).profiles == ("batch=1:1:4,length=1:16:16", "batch=1:1:1,length=17:64:64")
    kept = [line for line in COMMENTED.splitlines() if line not in COMMENTED.splitlines()[2:5]]
    assert [line for line in text.splitlines() if line in kept] == kept
    assert tomllib.loads(text) == tomllib.loads(COMMENTED) | {"profiles": list(recipe.read(path).profiles)}
    assert list(tmp_path.iterdir()) == [path]


def test_a_recipe_without_profiles_gets_them_before_its_first_table(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('source = "m.onnx"\n\n[budget]\ncosine = 0.999', encoding="utf-8")
    recipe_file.set_profiles(path, ["length=1:8:8"])
    assert recipe.read(path).profiles == ("length=1:8:8",) and recipe.read(path).budget == {"cosine": 0.999}


def test_a_recipe_that_cannot_be_edited_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('source = "m.onnx"\n"profiles" = ["length=1:8:8"]\n', encoding="utf-8")  # a quoted key
    with pytest.raises(RecipeError, match="write this in their place"):
        recipe_file.set_profiles(path, ["length=1:16:16"])
    assert recipe.read(path).profiles == ("length=1:8:8",)
    with pytest.raises(RecipeError, match=r"no recipe at .*--source"):
        recipe_file.set_profiles(tmp_path / "none.toml", ["length=1:8:8"])


# The command


def test_profile_writes_table_plot_and_a_new_recipe(tmp_path: Path, capsys: Capture) -> None:
    source = tiny.encoder(tmp_path / "m.onnx", tokenizer=True)
    requests = write(tmp_path / "r.jsonl", *[{"text": "two words"}] * 9, {"texts": ["two words and more", "and"]})
    plot, made = tmp_path / "w.svg", tmp_path / "new.toml"
    words = ["profile", str(requests), "--source", str(source), "--multiple", "2", "--plot", str(plot), "--recipe", str(made)]
    assert cli.run([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    # 9 x [CLS] two words [SEP], and one batch of 6 and 3 tokens: one bucket computes 11 x 6, two compute 9 x 4 + 12.
    assert found["tokens"] == 45 and found["requests"] == 10 and found["rows"] == 11
    assert [b["computed"] for b in found["buckets"]] == [66, 48]
    assert found["profiles"] == ["batch=1:1:2,length=1:4:4", "batch=1:2:2,length=5:6:6"]
    assert recipe.read(made).profiles == tuple(found["profiles"])
    assert recipe.read(made).source == str(source)
    assert ">tokens wasted: r.jsonl<" in plot.read_text("utf-8")
    assert "Triton" in err and "--profile batch=1:1:2,length=1:4:4" in err


ERRORS = [
    ("profile {e}", 2, "holds no request"),
    ("profile {o}", 2, "no requests at"),
    ("profile {l} --longest 20", 2, "l.txt:2 has a length of 30, over the longest, 20"),
    ("profile {l} --buckets 3", 2, "allow 1 to 2"),
    ("profile {l} --max-buckets 0", 2, "0 is not in the range x>=1"),
    ("profile {l} --longest 0", 2, "'--longest': 0"),
    ("profile {l} --recipe {o}.toml", 2, "no recipe at"),
    ("profile {l} --source {o}", 2, "no file or folder at"),
]


@pytest.mark.parametrize(("line", "code", "said"), ERRORS, ids=[line for line, *_ in ERRORS])
def test_errors_of_profile(line: str, code: int, said: str, tmp_path: Path, capsys: Capture) -> None:
    names = {"e": write(tmp_path / "e.txt"), "l": write(tmp_path / "l.txt", "5", "30"), "o": tmp_path / "no" / "thing.txt"}
    assert cli.run([*line.format(**names).split(), "--json"]) == code
    out, err = capsys.readouterr()
    assert said in " ".join(err.split()) and json.loads(out)["exit_code"] == code
