"""core/reading.py: what is wrong with a file is said with its name, the key, what was found and what may be."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec
import pytest

from bertc.core import InputError, read_json, read_json_lines, read_toml

Positive = Annotated[int, msgspec.Meta(ge=1, le=10)]


class Row(TypedDict):
    name: str
    sizes: NotRequired[dict[str, list[Positive]]]


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    policy: str = ""
    count: Positive = 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("no JSON",)),
        ("[" * 100_000, ("nested too deeply",)),
        ("[" * 200 + "]" * 200, ("nested too deeply",)),
        ('{"name": "a", "name": "b"}', ("'name'", "twice")),
        ("9" * 10_000, ("thousands of digits",)),
        ("\ufeff{}", ("byte order mark",)),
        ("[]", ("$ is a list", "wants an object")),
        ("{}", ("$ lacks 'name'",)),
        ('{"name": 3}', ("$.name is a whole number (3)", "wants a text")),
        ('{"name": null}', ("$.name is null", "wants a text")),
        ('{"name": "a", "sizes": {"b": [1], "c d": [1, 11]}}', ('$.sizes["c d"][1] is a whole number (11)', "<= 10")),
        ('{"name": "a", "sizes": {"b": [1, -5]}}', ("$.sizes.b[1]", "(-5)", ">= 1")),
    ],
)
def test_json(text: str, words: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_json(path, Row, advice="write it again")
    for word in (str(path), "; write it again", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = " + "[" * 100_000, ("nested too deeply",)),
        (".".join(["a"] * 100_000) + " = 1", ("more than 100 parts",)),
        ("polcy = 'x'", ("'polcy'", "did you mean 'policy'?")),
        ("count = 11", ("$.count is a whole number (11)", "<= 10")),
        ("count = true", ("$.count is true or false (true)", "wants a whole number")),
    ],
)
def test_toml(text: str, words: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_toml(path, Settings)
    for word in (str(path), *words):
        assert word in str(caught.value)


def test_what_is_right_is_read(tmp_path: Path) -> None:
    found: Any = {"name": "a", "sizes": {"b": [1, 10]}, "more": [None]}
    (tmp_path / "a.json").write_text('{"name": "a", "sizes": {"b": [1, 10]}, "more": [null]}')
    assert read_json(tmp_path / "a.json", Row) == found
    (tmp_path / "a.toml").write_text("policy = 'x.y.z'\ncount = 3")
    assert read_toml(tmp_path / "a.toml", Settings) == Settings("x.y.z", 3)


def test_half_a_character_in_a_name_is_read(tmp_path: Path) -> None:
    """A file name that is no UTF-8 stands so in what bertc itself writes."""
    (tmp_path / "a.json").write_text(r'{"name": "\udcff", "\udcfe": 1}')
    assert read_json(tmp_path / "a.json", Row) == {"name": "\udcff", "\udcfe": 1}
    (tmp_path / "a.json").write_text(r'{"name": "a", "sizes": "\udcff"}')
    with pytest.raises(InputError, match=r"\$\.sizes is a text"):
        read_json(tmp_path / "a.json", Row)


def test_a_file_without_an_end_is_not_read_whole(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="/dev/zero cannot be read: it is larger than 2 MiB"):
            read_json(Path("/dev/zero"), most=2**21)
        assert tracemalloc.get_traced_memory()[1] < 2**24
        (tmp_path / "a.json").write_text("{}")
        tracemalloc.reset_peak()
        assert read_json(tmp_path / "a.json") == {}
        assert tracemalloc.get_traced_memory()[1] < 2**23, "a small file takes no buffer of the largest one"
    finally:
        tracemalloc.stop()


def test_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert read_json_lines(path, dict[str, int]) == [{"a": 1}, {"a": 2}]
    for line, said in (('{"a": ', "line 3 cannot be read"), ('{"a": "x"}', r"line 3: \$\.a is a text"), ("[" * 10**5, "line 3")):
        path.write_text(f'{{"a": 1}}\n\n{line}\n')
        with pytest.raises(InputError, match=said):
            read_json_lines(path, dict[str, int])


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_what_was_measured_is_finite(number: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(f'{{"a": [{number}]}}')
    with pytest.raises(InputError, match=r"a\.json cannot be read: .* is not a finite number"):
        read_json(path, finite=True)
    assert len(read_json(path)["a"]) == 1
