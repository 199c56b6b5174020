"""Text in is the ids that transformers makes of it, whatever the settings of the tokenizer that lies beside the model."""

from __future__ import annotations

import json

import brought
import numpy as np
import pytest
import tiny
from transformers import AutoTokenizer

import bertc

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, *"Hello hello World world this This is text dog a < > / , . ! ##s ##d Ünï ünï It mark".split()]
TEXTS = ["Hello World, this is Ünï text!", "dogs", "a  double space and <mark>a tag</mark>", "see [E1] worlds", ""]
PAIRS = [("What is it?", "It is a dog."), ("a", "This is a world, a much longer text than a word."), ("Hello", "")]


def settings(folder, **changed):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changed))


def cased(folder):
    """From a vocab.txt alone, as BERT's first checkpoints came."""
    (folder / "vocab").mkdir()
    (folder / "vocab" / "vocab.txt").write_text("\n".join(WORDS) + "\n", "utf-8")
    about = {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "model_max_length": 64}
    (folder / "vocab" / "tokenizer_config.json").write_text(json.dumps(about))
    return AutoTokenizer.from_pretrained(str(folder / "vocab"))


def plain(folder):
    cased(folder).save_pretrained(folder)


def added(folder):
    made = cased(folder)
    made.add_tokens(["<mark>", "</mark>"])
    made.add_special_tokens({"additional_special_tokens": ["[E1]"]})
    made.save_pretrained(folder)


def left(folder):
    plain(folder)
    settings(folder, padding_side="left")


def no_pad(folder):
    """Decoders have no token of padding: another one is taken."""
    plain(folder)
    settings(folder, pad_token="[SEP]")


def short(folder):
    plain(folder)
    settings(folder, model_max_length=9)


@pytest.mark.parametrize("texts", [TEXTS, PAIRS], ids=["texts", "pairs"])
@pytest.mark.parametrize("make", [plain, added, left, no_pad, short])
def test_ids_are_those_of_transformers(make, texts, tmp_path):
    make(tmp_path)
    tiny.encoder(tmp_path / "m.onnx")
    built = brought.build(tmp_path / "m.onnx", tmp_path / "out", targets=["onnxruntime=fp32"])
    assert built.code == 0, built.said
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    columns = [list(column) for column in zip(*texts, strict=True)] if isinstance(texts[0], tuple) else [texts]
    wanted = theirs(*columns, padding=True, truncation=True, return_tensors="np")
    got = bertc.load(str(built.folder)).encode(texts)
    assert set(got) == {"input_ids", "attention_mask"}
    for name, array in got.items():
        np.testing.assert_array_equal(array, wanted[name])
