"""Synthetic feeds: the shapes, the paddings, and ids that stay within their tables."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertc.core.errors import DataError
from bertc.core.profiles import Dim
from bertc.core.tensors import TensorSpec
from bertc.data import synthetic as data
from bertc.data.samples import Layout, dead_rows, may_count_rows
from bertc.data.synthetic import index_bounds, mask_pattern, synthetic_samples
from bertc.graph.model import Graph

DIMS = {"batch": Dim("batch"), "length": Dim("length", 1, 64)}


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
    samples = synthetic_samples(graph(ENCODER), DIMS)
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
        "batch 1, length 64, left padding",
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
    first, again, other = (synthetic_samples(graph(ENCODER), DIMS, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a.feeds[n], b.feeds[n]) for a, b in zip(first, again, strict=True) for n in a.feeds)
    assert not np.array_equal(first[3].feeds["input_ids"], other[3].feeds["input_ids"])


def test_max_elements_is_kept_and_told():
    samples = synthetic_samples(graph(ENCODER), DIMS, max_elements=100)
    assert max(sample.feeds["input_ids"].size for sample in samples) <= 100
    assert samples[-3].label == "batch 2, length 37 (batch cut from 5), right padding"
    tiny = synthetic_samples(graph(ENCODER), DIMS, max_elements=40)
    assert tiny[-1].label == "batch 1, length 40 (length cut from 64), left padding"


def test_feeds_at_given_sizes():
    sample = data.sample_at(graph(ENCODER), DIMS, {"batch": 3, "length": 9}, seed=4)
    assert {name: array.shape for name, array in sample.feeds.items()} == dict.fromkeys(sample.feeds, (3, 9))
    assert sample.feeds["attention_mask"].all() and sample.feeds["input_ids"].max() < 100
    again, other = (data.sample_at(graph(ENCODER), DIMS, {"batch": 3, "length": 9}, seed) for seed in (4, 5))
    assert np.array_equal(again.feeds["input_ids"], sample.feeds["input_ids"])
    assert not np.array_equal(other.feeds["input_ids"], sample.feeds["input_ids"])
    padded = data.sample_at(graph(ENCODER), DIMS, {"batch": 3, "length": 9}, kind="right")
    assert padded.feeds["attention_mask"][0].all() and not padded.feeds["attention_mask"].all()
    with pytest.raises(DataError, match="length=65 is not a size that the model takes: length 1 to 64"):
        data.sample_at(graph(ENCODER), DIMS, {"batch": 1, "length": 65})
    with pytest.raises(DataError, match="no size for length"):
        data.sample_at(graph(ENCODER), DIMS, {"batch": 1})


def test_unlimited_length_is_512():
    samples = synthetic_samples(graph(ENCODER), {"batch": Dim("batch"), "length": Dim("length")})
    assert samples[-1].feeds["input_ids"].shape == (1, 512)


def test_audio_shapes():
    audio = of_inputs("float[batch, samples] input_values, int32[batch, samples] attention_mask")
    samples = synthetic_samples(audio, {"batch": Dim("batch"), "samples": Dim("samples")})
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
    samples = synthetic_samples(model, dims)
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
    labels = [sample.label for sample in synthetic_samples(of_inputs("int64[batch, length] input_ids"), DIMS)]
    assert labels == [
        "batch 1, length 17",
        "batch 1, length 1",
        "batch 2, length 1",
        "batch 3, length 17",
        "batch 5, length 37",
        "batch 1, length 64",
    ]


def test_fixed_shapes_keep_the_paddings():
    samples = synthetic_samples(of_inputs("int64[1, 8] input_ids, int64[1, 8] attention_mask"), {})
    kinds = [sample.label.removeprefix("the graph's fixed shape, ") for sample in samples]
    assert kinds == ["no padding", "right padding", "left padding", "holes in the mask", "random mask"]
    assert all(0 < sample.feeds["attention_mask"].sum() < 8 for sample in samples[1:])


def test_a_large_fixed_batch_has_every_padding_in_one_sample():
    """A sample of 8 x 8 places: no more than these two where it is over the limit, six of them below it or with few rows."""
    large = of_inputs("int64[8, 8] input_ids, int64[8, 8] attention_mask")
    first, mixed = synthetic_samples(large, {}, max_elements=63)
    assert first.feeds["attention_mask"].all() and mixed.label.endswith("each row padded in another way")
    mask, steps = mixed.feeds["attention_mask"], np.diff(mixed.feeds["attention_mask"], axis=1)
    assert mask[0].all() and not mask[1].any() and mixed.dead_rows == (1,) and mixed.made_up
    assert (steps[4] <= 0).all() and (steps[5] >= 0).all(), "right, left"
    assert (mask[2:].sum(1) < 8).all() and (mask[2:].sum(1) > 0).all() and mask[6, [0, -1]].all(), "holes"
    assert len(synthetic_samples(large, {}, max_elements=64)) == len(data.PADDINGS)
    few = of_inputs("int64[5, 8] input_ids, int64[5, 8] attention_mask")
    assert len(synthetic_samples(few, {}, max_elements=1)) == len(data.PADDINGS)


def test_synthetic_refuses_what_it_cannot_make():
    with pytest.raises(DataError, match="unknown dimension 'legnth'; did you mean 'length'"):
        synthetic_samples(of_inputs("int64[batch, legnth] x"), DIMS)
    with pytest.raises(DataError, match=r"\.npz"):
        synthetic_samples(of_inputs("string[batch] x"), DIMS)


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


# Rows on other axes than the first, and on several


def test_a_mask_of_time_first_has_its_rows_on_its_second_axis():
    found = of_inputs("int64[length, batch] ids, int64[length, batch] attention_mask")
    samples = synthetic_samples(found, DIMS)
    dead = next(sample for sample in samples if sample.dead_rows)
    assert dead.dead_rows == (1,)
    assert not dead.feeds["attention_mask"][:, 1].any()
    assert dead.feeds["attention_mask"][:, 0].all()
    right = next(sample.feeds["attention_mask"] for sample in samples if "right padding" in sample.label)
    assert (np.diff(right, axis=0) <= 0).all(), "padding is at the end of the length"


def test_a_stack_of_caches_has_its_rows_where_the_batch_is():
    inputs = [
        TensorSpec("past", "float32", (4, "rows", 2, "past", 8)),
        TensorSpec("ids", "int64", ("rows", 1)),
        TensorSpec("mask", "int64", ("rows", "past + 1")),
    ]
    layout = Layout.of(inputs, [TensorSpec("present", "float32", (4, "rows", 2, "past + 1", 8))])
    assert (layout.batch, layout.inputs, layout.outputs) == ("rows", {"past": 1, "ids": 0, "mask": 0}, {"present": 1})
    assert Layout.of(inputs[:1], ()).batch == "rows"


ROWS = ("batch", "x", "length")


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        ({"ids": ROWS}, ("x",)),
        ({"ids": ROWS, "scores": ("batch", "x")}, ("x",)),  # a listwise ranker's prior scores
        ({"pairs": ROWS, "ids": ("batch", "x"), "others": ("batch", "length")}, ()),  # a table of pairs
        ({"attention_mask": ROWS, "ids": ("batch", "length")}, ()),  # a mask [batch, from, to]
        ({"positions": ("batch", "length", "length")}, ()),
        ({"pixels": ("batch", 3, "height", "width")}, ()),
        ({"states": ("batch", "length", 64)}, ()),
        ({"windows": ("batch", "batch_windows", "length", 80)}, ("batch_windows",)),
        ({"ids": ("a", "b", "c", "length")}, ("b", "c")),
    ],
)
def test_what_may_count_rows_beside_the_batch(inputs, found):
    specs = [TensorSpec(name, "int64" if name != "states" else "float32", dims) for name, dims in inputs.items()]
    assert may_count_rows(specs, {name: Dim(name) for spec in specs for name in spec.names}) == found
