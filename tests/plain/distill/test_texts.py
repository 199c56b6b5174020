"""Texts to learn from: odd files, repetitions, what is held out, batches."""

from __future__ import annotations

from pathlib import Path

import distilling
import models
import numpy as np
import pytest

from bertc.core import DataError
from bertc.data import Encoder
from bertc.distill import read_texts
from bertc.distill.texts import Example, batches_of, encode


def read(path: Path, **options):
    return read_texts(path, None, options.pop("share", 0.1), **options)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "0 different texts"),
        (b"one line\n", "1 different text"),
        (b"the same\n" * 500, "1 different text"),
        ("naïve\n".encode("latin-1") * 30, "not UTF-8"),
        (b"\n \n\t\n" * 40, "0 different texts"),
    ],
)
def test_files_that_teach_nothing(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        read(path)


@pytest.mark.parametrize(("name", "said"), [("none.txt", "not there"), ("texts.pdf", "'.pdf'"), (".", "is a folder")])
def test_files_that_are_none(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "texts.pdf").write_text("text\n")
    with pytest.raises(DataError, match=said):
        read(tmp_path / name)


def test_the_same_texts_are_held_out_whatever_their_order(tmp_path: Path) -> None:
    lines = distilling.sentences(200)
    found = []
    for at, order in enumerate((lines, lines[::-1], [*lines, *lines[:50]])):
        path = tmp_path / f"{at}.txt"
        path.write_text("\n".join(order), encoding="utf-8")
        texts = read(path)
        assert not {e.text for e in texts.learned} & {e.text for e in texts.held_out}
        found.append({e.text for e in texts.held_out})
    assert len(found[0]) == 20 and found[0] == found[1] == found[2]
    assert any("50" in note and "250" in note for note in texts.notes)


def test_a_file_of_held_out_texts_is_not_learned_from(tmp_path: Path) -> None:
    data, apart = distilling.text_file(tmp_path / "a.txt"), tmp_path / "b.txt"
    apart.write_text("\n".join(distilling.sentences(30)), encoding="utf-8")
    texts = read(data, held_out=apart)
    assert len(texts.held_out) == 30 and len(texts.learned) == distilling.SENTENCES - 30
    assert any("30" in note and "held out" in note for note in texts.notes)


def test_pairs_are_two_texts_where_the_model_takes_one(tmp_path: Path) -> None:
    lines = distilling.sentences(100)
    rows = [{"text": a, "text_pair": b} for a, b in zip(lines[::2], lines[1::2], strict=True)]
    path = distilling.rows_file(tmp_path / "p.jsonl", rows)
    assert len(read(path).learned) + len(read(path).held_out) == 100
    whole = read(path, pairs=True)
    assert len(whole.learned) + len(whole.held_out) == 50 and isinstance(whole.learned[0].text, tuple)


def test_a_long_line_is_cut_and_a_text_of_unknown_words_stays() -> None:
    encoder = Encoder.from_directory(distilling.encoder(), 40)
    found = encode([Example("cat " * 25_000), Example("zzz"), Example("\u200b")], encoder, lambda done, total: None)
    assert found.cut == 1 and list(found.lengths) == [40, 3, 2 if len(found.rows[2]["input_ids"]) == 2 else 3]
    batch = found.batch([1, 0])
    assert batch["input_ids"].shape == (2, 40) and batch["attention_mask"].sum(1).tolist() == [3, 40]
    assert batch["input_ids"][0, 3:].tolist() == [models.WORDS.index("[PAD]")] * 37


def test_batches_are_a_function_of_seed_and_epoch_and_hold_like_lengths() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 1000)
    one, again, other, later = (batches_of(lengths, 16, *key) for key in ((0, 0), (0, 0), (1, 0), (0, 1)))
    assert all(map(np.array_equal, one, again))
    assert not all(map(np.array_equal, one, other)) and not all(map(np.array_equal, one, later))
    assert sorted({len(each) for each in one}) == [16] and len(set(np.concatenate(one))) == 16 * len(one) >= 984
    padded = sum(lengths[each].max() * len(each) for each in one)
    assert padded < 1.1 * sum(lengths[each].sum() for each in one)
    assert [len(each) for each in batches_of(lengths[:5], 16, 0, 0)] == [5]
