"""A file of ranges that somebody else wrote: a value is what it must be or the error names file and key; nothing is opened."""

from __future__ import annotations

import builtins
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

from bertc.cli import _main as cli
from bertc.core.errors import DataError
from bertc.quant.calibration import command as calibrate
from bertc.quant.calibration import ranges_file as ranges

WRONG: list[Any] = [
    None,
    -1,
    10**30,
    1.5,
    float("nan"),
    float("inf"),
    "x",
    "../../etc/passwd",
    "0*99999999999",
    "0*-5 1",
    [],
    {},
    True,
]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("ranges")
    model = tiny.encoder(folder / "m.onnx", tokenizer=True)
    (folder / "t.txt").write_text("two words\nand more words\n")
    request = calibrate.CalibrationRequest(folder / "t.txt", by_channel=("*",))
    calibrate.calibrate(str(model), request, folder / "r.json")
    found: dict[str, Any] = json.loads((folder / "r.json").read_text())
    return found | {"tensors": dict(sorted(found["tensors"].items())[:1])}


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key, and the first element of every list."""
    if at:
        yield at
    keys = list(value) if isinstance(value, dict) else [0] if isinstance(value, list) and value else []
    for key in keys:
        yield from places(value[key], (*at, key))


def changed(document: dict[str, Any], at: tuple[Any, ...], value: Any) -> dict[str, Any]:
    made = copy.deepcopy(document)
    inner: Any = made
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return made


def test_any_wrong_value_is_read_or_refused_by_name(healthy: dict[str, Any], tmp_path: Path) -> None:
    path, refused = tmp_path / "r.json", 0
    for at in places(healthy):
        for value in WRONG:
            path.write_text(json.dumps(changed(healthy, at, value)))
            try:
                found = ranges.read(path)
                json.dumps(found.to_json(), allow_nan=False)
                ranges.merge([found, found], ["a", "b"])
            except DataError as error:
                refused += "r.json" in str(error) or "share samples" in str(error)
    assert refused > 250


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("values", -1, "whole number"),
        ("nan", 10**30, "whole number"),
        ("min", 1e39, "'min' is"),
        ("max", -1e30, "above 'max'"),
        ("dims", [1, 1, 10**9], "'channel_max' has"),
        ("axis", 7, "'axis' is"),
        ("by_channel", 1, "'by_channel' is"),
        ("channel_max", [-1.0], "'channel_max' is"),
        ("histogram", {"exponent": 10**6, "counts": ""}, "'exponent' is"),
        ("histogram", {"exponent": 0, "counts": "0*-5 1"}, "0*-5"),
        ("histogram", {"exponent": 0, "counts": "-3 4"}, "-3"),
        ("histogram", {"exponent": 0, "counts": f"{10**30}"}, "has a size"),
        ("op", ["MatMul"], "'op' is"),
    ],
)
def test_the_error_names_file_tensor_and_key(
    healthy: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: Any, word: str
) -> None:
    name = next(iter(healthy["tensors"]))
    path = tmp_path / "r.json"
    path.write_text(json.dumps(changed(healthy, ("tensors", name, key), value)))
    assert cli.run(["calibrate", "--merge", str(path), str(path), "-o", str(tmp_path / "out.json")]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert str(path) in told and repr(name) in told and word in told, told


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"format": 1, "tensors":' * 5000, '{"format": 1, "tensors": 1e999}', '{"format": NaN}']
)
def test_documents_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(DataError, match=r"r\.json"):
        ranges.read(tmp_path / "r.json")


def test_a_file_that_is_too_large_to_read_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse: 1 TiB that take no room
    with pytest.raises(DataError, match="memory free"):
        ranges.read(path)


def test_nothing_that_a_file_names_is_opened(healthy: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = str(tmp_path / "secret")
    Path(secret).write_text("")
    made = changed(changed(healthy, ("source", "reference"), secret), ("data", 0, "name"), secret)
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    for path, sha256 in ((first, "1" * 64), (second, "2" * 64)):
        path.write_text(json.dumps(changed(made, ("data", 0, "sha256"), sha256)))
    opened, real = [], builtins.open
    monkeypatch.setattr(builtins, "open", lambda file, *a, **k: (opened.append(str(file)), real(file, *a, **k))[1])
    monkeypatch.setattr("io.open", builtins.open)
    calibrate.merge([first, second], tmp_path / "out.json")
    assert str(first) in opened and secret not in opened


@pytest.mark.parametrize(("key", "value"), [("percentile", -1), ("percentile", 101), ("outlier", 0.5)])
def test_settings_out_of_range_name_the_file(healthy: dict[str, Any], tmp_path: Path, key: str, value: float) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(changed(healthy, ("settings", key), value)))
    with pytest.raises(DataError, match=rf"r\.json, settings: .*{key}"):
        ranges.read(path)
