"""Float32 islands from data: what is measured, what it demands of each node, and that no island is there for nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import overflowing
import pytest
import tiny
from graph_text import ATTENTION, graph_of, valid
from island_graphs import evidence, graph, islands, row

import bertc
from benchmarks import island_trials
from bertc import precision, targets
from bertc.core.errors import DataError
from bertc.data import synthetic as data
from bertc.fusions import engine as fuse
from bertc.graph.model import Graph
from bertc.precision._value_ranges import PART, Evidence, RangeRequest, Sum, ValueRange, measure_ranges
from bertc.runtime.reference import ReferenceRunner, reference_session
from bertc.runtime.taps import with_outputs
from bertc.source import onnx_file as onnx_source
from bertc.verification import budgets
from bertc.verification.comparison import Comparison

TINY = 2.0**-24
RTX = targets.parse_spec("tensorrt-rtx:sm89")


class Overflowing:
    """The model built to overflow, fused and lowered for TensorRT, with samples of every mask and what the source answers."""

    def __init__(self, folder: Path, pre_norm: bool) -> None:
        source, dims, _ = onnx_source.read_onnx_file(overflowing.encoder(folder / "model.onnx", pre_norm=pre_norm))
        fused = fuse.fuse(source, dims, prove=False).graph
        self.lowered = targets.get(RTX.name).lower(fused, RTX.sms)
        self.samples = data.synthetic_samples(source, dims)
        self.evidence = Evidence(self.samples, f"{len(self.samples)} synthetic samples")
        runner = ReferenceRunner(source)
        self.outputs = [runner.run(sample.feeds) for sample in self.samples]

    def answers(self, typed: Graph) -> list[np.ndarray]:
        runner = ReferenceRunner(typed)
        return [runner.run(sample.feeds)["logits"] for sample in self.samples]


@pytest.fixture(scope="module", params=[False, True], ids=["post-norm", "pre-norm"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Overflowing:
    return Overflowing(tmp_path_factory.mktemp("overflowing"), request.param)


def test_the_model_overflows_as_it_says(model: Overflowing) -> None:
    found = measure_ranges(model.lowered, model.samples, RangeRequest(TINY))
    assert max(r.largest for name, r in found.items() if name.endswith("f/MatMul")) == pytest.approx(overflowing.LARGE, rel=0.3)
    logits = [np.abs(answer["logits"]) for answer in model.outputs]
    assert max(each.max() for each in logits) == pytest.approx(overflowing.LOGIT, rel=0.1)
    assert any(sample.dead_rows for sample in model.samples)


def test_without_data_it_is_not_finite(model: Overflowing) -> None:
    """Nothing in the constants tells: this is what the measured islands are for."""
    typed = precision.get("fp16").apply(model.lowered)
    assert not any(np.isfinite(answer).all() for answer in model.answers(typed.graph))
    assert not typed.plan.evidence
    assert not islands(typed)


def test_with_data_it_is_finite_and_close_for_every_mask_with_few_islands(model: Overflowing) -> None:
    typed = precision.get("fp16").apply(model.lowered, model.evidence)
    valid(typed.graph)
    comparison = Comparison()
    for sample, expected, got in zip(model.samples, model.outputs, model.answers(typed.graph), strict=True):
        assert np.isfinite(got).all(), sample.label
        comparison.add(expected, {"logits": got}, sample)
        small = np.arange(overflowing.CLASSES) != 3  # beside 70,000 the others are nothing to a cosine
        wanted = expected["logits"][:, small]
        np.testing.assert_allclose(got[:, small], wanted, atol=0.02 * np.sqrt((wanted**2).mean()))
    assert not budgets.find_violations(comparison.result(), budgets.DEFAULT_BUDGETS["fp16"])
    past = [island for island in typed.plan.islands if island.kind == "past the range of fp16"]
    demanded = [island for island in typed.plan.islands if island.by == "data"]
    pre_norm = len(demanded) > 6  # the residual stream carries it to the end: an Add and a norm more for each sum on the way
    assert (len(past), len(demanded)) == ((7, 10) if pre_norm else (5, 6))
    assert typed.plan.typed_nodes > 50
    gemms = [island.node for island in past if island.op == "MatMul"]
    assert [name.split("/")[0] for name in gemms] == ["linear.n_0.f", "linear.n_logits"]


def test_no_island_can_be_left_out(model: Overflowing) -> None:
    tried = list(island_trials.trials(model.lowered, "fp16", model.evidence, model.outputs))
    assert len(tried) >= 6
    assert all(trial.needed for trial in tried), [trial for trial in tried if not trial.needed]
    assert all("not finite" in trial.why for trial in tried)


def test_an_island_within_the_margin_alone_is_not_shown_to_be_needed() -> None:
    source = graph("y = MatMul (x, w)", declared="float[4,4] w", w=np.eye(4, dtype=np.float32) * 2e4)
    feeds = evidence(row(1, 1, 1, 1))
    (trial,) = island_trials.trials(source, "fp16", feeds, [ReferenceRunner(source).run(feeds.samples[0].feeds)])
    assert trial.op == "MatMul" and not trial.needed
    assert "the margin is a factor of 4" in trial.reason


def test_bfloat16_needs_none_of_them(model: Overflowing) -> None:
    typed = precision.get("bf16").apply(model.lowered, model.evidence)
    assert {island.kind for island in typed.plan.islands if island.by == "data"} <= {"sums in float32"}
    assert all(np.isfinite(answer).all() for answer in model.answers(typed.graph))


def test_what_is_measured_part_by_part_is_what_a_whole_run_shows(model: Overflowing) -> None:
    assert len(list(model.lowered.model.graph)) > PART, "more than one part, or nothing is handed over"
    found = measure_ranges(model.lowered, model.samples, RangeRequest(TINY))
    made = [v for n in model.lowered.model.graph for v in n.outputs if v.dtype == ir.DataType.FLOAT]
    assert set(found) == {str(v.name) for v in made}
    names = [str(v.name) for v in made]
    runner, weights = reference_session(with_outputs(model.lowered, names))
    largest = dict.fromkeys(names, 0.0)
    for sample in model.samples:
        for name, array in zip(names, runner.run(names, {**weights, **sample.feeds}), strict=True):
            largest[name] = max(largest[name], float(np.abs(array).max()))
    for name in names:
        assert found[name].largest == pytest.approx(largest[name], rel=1e-4), name


def test_a_range_counts_what_is_there() -> None:
    found = ValueRange()
    found.add(np.array([[1e-9, -3.0, 0.0, np.nan, -np.inf, -2e4]], np.float32), "a", TINY, cut=-1e4)
    found.add(np.array([[2e-9, 7.0]], np.float32), "b", TINY)
    found.add(np.zeros((0, 4), np.float32), "empty", TINY)
    assert (found.largest, found.where, found.faintest, found.faint) == (7.0, "b", 3.0, "a")
    assert found.smallest == pytest.approx(1e-9)
    assert (found.values, found.flushed, found.nan, found.infinite, found.masked) == (5, 2, 1, 0, -np.inf)
    assert not found.finite


def test_sums_are_taken_over_the_axes_of_their_reader() -> None:
    array = np.array([[3.0, -4.0], [1.0, 1.0]], np.float32)
    assert Sum((-1,), 2).of(array) == (25.0, 2)
    assert Sum((-1,), 1).of(array) == (7.0, 2)
    assert Sum((), 1).of(array) == (9.0, 4)


def test_no_samples_and_samples_that_do_not_fit_are_errors() -> None:
    source = graph("y = Relu (x)")
    with pytest.raises(DataError, match="no samples"):
        precision.get("fp16").apply(source, Evidence((), "nothing"))
    with pytest.raises(DataError, match=r"float32 graph on sample 0: .*cannot run it"):
        precision.get("fp16").apply(source, evidence({"x": np.ones((1, 3), np.float32)}))


def test_an_island_ends_where_the_values_fit_again() -> None:
    source = graph(
        "a = Mul (x, x) b = Add (a, a) c = Mul (b, small) d = Mul (c, c) y = Relu (d)", declared="float small = {0.0001}"
    )
    typed = precision.get("fp16").apply(source, evidence(row(1, 2, 3, 300), row(1, 1, 1, 1)))
    assert [i.node.split("_")[0] for i in typed.plan.islands] == ["Mul", "Add", "Mul"]
    assert typed.plan.typed_nodes == 2
    first, _, last = typed.plan.islands
    assert (first.measured, first.sample, first.by) == (90000.0, "sample 0", "data")
    assert first.reason == "reaches 9e+04 on 'sample 0'; fp16 holds 65504"
    assert last.reason == "reads 'b', which reaches 1.8e+05 on 'sample 0'; fp16 holds 65504"


def test_one_layer_of_several_is_an_island_not_its_operator() -> None:
    source = graph("a = MatMul (x, w) b = MatMul (a, big) c = MatMul (b, less) y = MatMul (c, w)",
                   declared="float[4,4] w, float[4,4] big, float[4,4] less", w=np.eye(4, dtype=np.float32),
                   big=np.eye(4, dtype=np.float32) * 3e4, less=np.eye(4, dtype=np.float32) * 1e-4)  # fmt: skip
    typed = precision.get("fp16").apply(source, evidence(row(3, 3, 3, 3)))
    assert [i.node for i in typed.plan.islands] == ["MatMul_1", "MatMul_2"]
    y = ReferenceRunner(typed.graph).run(row(3, 3, 3, 3))["y"]
    np.testing.assert_allclose(y, 9, rtol=2e-3)


def attention(low: float, mask: list[list[int]], scale: float = 1.0) -> tuple[Graph, Evidence]:
    source = graph_of(ATTENTION.replace("-3.4028234663852886e+38", "0.0").replace("0.35", str(scale)))
    source.model.graph.initializers["low"].const_value = ir.tensor(np.float32(low), name="low")
    x = np.random.default_rng(1).standard_normal((len(mask), len(mask[0]), 8)).astype(np.float32)
    return source, evidence({"x": x, "mask": np.array(mask)})


@pytest.mark.parametrize("low", [-1e9, -1e4, -65504.0, -3.4028e38, -np.inf])
def test_a_mask_makes_no_island_and_a_row_that_is_all_masked_is_finite(low: float) -> None:
    source, seen = attention(low, [[1, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    typed = precision.get("fp16").apply(source, seen)
    assert not [i for i in typed.plan.islands if i.by == "data"]
    assert len(typed.plan.clamps) == (low < -3e4)
    feeds = seen.samples[0].feeds
    got, exact = (ReferenceRunner(g).run(feeds)["y"] for g in (typed.graph, source))
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[[0, 2]], exact[[0, 2]], atol=0.01)


def test_scores_that_push_a_mask_over_the_edge_are_seen() -> None:
    source, seen = attention(-1e9, [[1, 1, 0], [0, 0, 0]], scale=-5e3)
    typed = precision.get("fp16").apply(source, seen)
    assert {"Add", "Mul"} <= set(islands(typed))
    assert np.isfinite(ReferenceRunner(typed.graph).run(seen.samples[0].feeds)["y"]).all()
    assert not np.isfinite(ReferenceRunner(precision.get("fp16").apply(source).graph).run(seen.samples[0].feeds)["y"]).all()


def test_a_mask_that_multiplies_a_positive_constant_is_finite_too() -> None:
    """(mask - 1) * 1e9: the constant itself is no mask term, so nothing is clamped, and the values tell."""
    source = graph(
        "m = Cast <to = 1> (mask) k = Sub (m, one) bias = Mul (k, big) s = Add (x, bias) y = Softmax (s)",
        "float[B,4] x, int64[B,4] mask", declared="float one = {1.0}, float big = {1000000000.0}",
    )  # fmt: skip
    feeds = {"x": np.ones((2, 4), np.float32), "mask": np.array([[0, 0, 0, 0], [1, 1, 0, 1]])}
    typed = precision.get("fp16").apply(source, evidence(feeds))
    assert "Add" in islands(typed)
    np.testing.assert_allclose(ReferenceRunner(typed.graph).run(feeds)["y"], ReferenceRunner(source).run(feeds)["y"], atol=1e-3)
    assert not np.isfinite(ReferenceRunner(precision.get("fp16").apply(source).graph).run(feeds)["y"]).all()


def test_a_divisor_that_would_be_zero_is_an_island() -> None:
    source = graph("a = Mul (x, x) b = Mul (a, a) y = Div (a, b)")
    seen = evidence(row(1, 0.5, 1e-2, 0.7))
    typed = precision.get("fp16").apply(source, seen)
    assert set(islands(typed)) == {"Mul", "Div"}
    assert islands(typed)["Div"] == "1 of 4 numbers of 'b' would be zero in fp16"
    assert np.isfinite(ReferenceRunner(typed.graph).run(seen.samples[0].feeds)["y"]).all()
    assert not np.isfinite(ReferenceRunner(precision.get("fp16").apply(source).graph).run(seen.samples[0].feeds)["y"]).all()


def test_values_that_all_vanish_are_an_island_where_their_reader_tells() -> None:
    body = "a = Mul (x, x) b = Mul (a, large) y = Add (b, x)"
    faint = {"x": np.full((4, 8), 1e-3, np.float32)}
    source = graph(body, "float[4,8] x", "float[4,8] y", "float large = {30000.0}")
    typed = precision.get("fp16").apply(source, evidence(faint))
    assert [i.node for i in typed.plan.islands] == ["Mul_0", "Mul_1"]
    assert "all of 'a' is below 1e-06 on 'sample 0'; fp16 is exact from 6.1e-05 on" in islands(typed)["Mul"]
    got, exact = (ReferenceRunner(g).run(faint)["y"] for g in (typed.graph, source))
    np.testing.assert_allclose(got, exact, rtol=2e-3)
    hidden = graph("a = Mul (x, small) y = Add (a, x)", "float[4,8] x", "float[4,8] y", "float small = {0.000001}")
    assert not precision.get("fp16").apply(hidden, evidence({"x": np.ones((4, 8), np.float32)})).plan.islands


def test_functions_are_half_where_their_values_fit() -> None:
    """In float32 such a function costs a kernel: it is no longer fused into the GEMM before it."""
    one, small = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32) / 100
    body = "a = MatMul (x, w) b = Exp (a) y = MatMul (b, v)"
    source = graph(body, declared="float[4,4] w, float[4,4] v", w=one, v=small)
    assert [i.op for i in precision.get("fp16").apply(source).plan.islands] == ["Exp"]
    assert not precision.get("fp16").apply(source, evidence(row(1, 2, 3, 4))).plan.islands
    past = precision.get("fp16").apply(source, evidence(row(1, 2, 3, 11)))
    assert set(islands(past)) == {"Exp", "MatMul"}
    assert "which reaches 6e+04" in islands(past)["MatMul"]


def test_a_root_between_islands_stays_with_them() -> None:
    source = graph(
        "a = Mul (x, x) v = ReduceMean (a, last) s = Add (v, eps) r = Sqrt (s) y = Div (x, r)",
        declared="int64[1] last = {-1}, float eps = {0.001}",
    )
    typed = precision.get("fp16").apply(source, evidence(row(1, 2, 3, 4)))
    assert {i.op: i.by for i in typed.plan.islands} == dict.fromkeys(("Mul", "ReduceMean", "Add", "Sqrt", "Div"), "free")


VARIANCE = """m = ReduceMean (x, last) SQUARE v = ReduceMean (s, last) p = Mul (m, m) d = Sub (v, p) e = Max (d, zero)
  f = Add (e, eps) r = Sqrt (f) c = Sub (x, m) y = Div (c, r)"""


@pytest.mark.parametrize("half", ["fp16", "bf16"])
@pytest.mark.parametrize("square", ["s = Mul (x, x)", "s = Pow (x, two)"])
def test_a_variance_that_is_a_small_difference_keeps_its_digits(square: str, half: str) -> None:
    """E[x * x] - E[x]^2, as jax has it: of rows far from zero the squares are much larger than what is left of them."""
    constants = "int64[1] last = {-1}, float eps = {0.000001}, float zero = {0.0}, float two = {2.0}"
    source = graph(VARIANCE.replace("SQUARE", square), "float[B,64] x", "float[B,64] y", constants)
    step = {"fp16": 2.0**-9, "bf16": 2.0**-6}[half]  # x is exact in the type, so that all that is lost is lost in between
    x = 1 + step * np.random.default_rng(0).integers(0, 8, (4, 64)).astype(np.float32)
    typed = precision.get(half).apply(source, evidence({"x": x}))
    got, exact = (ReferenceRunner(g).run({"x": x})["y"] for g in (typed.graph, source))
    np.testing.assert_allclose(got, exact, atol=0.1)  # of what `m` loses in x - m; with rounded squares it is 6 and 0.7


def test_a_logarithm_on_its_way_to_a_number_of_a_bucket_stays_in_float32() -> None:
    """T5 and MPNet number the buckets of relative positions so; rounded in between, a place would move to another bucket."""
    source = graph(
        "f = Cast <to = 1> (n) d = Div (f, exact) l = Log (d) m = Mul (l, factor) y = Cast <to = 7> (m)",
        "int64[N] n", "int64[N] y", "float exact = {8.0}, float factor = {2.885390043258667}",
    )  # fmt: skip
    feeds = {"n": np.arange(8, 512)}
    typed = precision.get("fp16").apply(source, evidence(feeds))
    assert {"Log", "Mul", "Cast"} <= {island.op for island in typed.plan.islands}
    np.testing.assert_array_equal(*(ReferenceRunner(g).run(feeds)["y"] for g in (typed.graph, source)))


def test_an_angle_that_rounding_turns_is_an_island() -> None:
    source = graph("a = Mul (x, x) y = Sin (a)")
    assert not precision.get("fp16").apply(source, evidence(row(1, 1, 2, 2))).plan.islands
    typed = precision.get("fp16").apply(source, evidence(row(1, 1, 2, 23)))
    assert "an angle of 529 on 'sample 0' is off by up to 0.26 in fp16" in islands(typed)["Sin"]


def test_sums_say_whether_the_data_demands_them() -> None:
    source = graph("y = ReduceSum (x, last)", "float[B,N] x", "float[B,1] y", "int64[1] last = {-1}")
    free = precision.get("fp16").apply(source, evidence({"x": np.ones((2, 9), np.float32)}))
    large = precision.get("fp16").apply(source, evidence({"x": np.full((2, 9), 9e3, np.float32)}))
    deep = precision.get("fp16").apply(source, evidence({"x": np.ones((2, 3000), np.float32)}))
    assert [(i.reason, i.by) for i in free.plan.islands] == [("sums in float32", "free")]
    assert "sums 9 numbers to 8.1e+04 on 'sample 0'; fp16 holds 65504" in islands(large)["ReduceSum"]
    assert "sums 3000 numbers; in fp16 it may be off by a quarter past 512" in islands(deep)["ReduceSum"]
    assert free.plan.reasons() == large.plan.reasons() == deep.plan.reasons() == {"sums in float32": 1}


def test_values_that_are_not_finite_in_float32_are_told() -> None:
    source = graph("a = Log (x) y = Relu (a)")
    plan = precision.get("fp16").apply(source, evidence(row(1, -1, 2, 3))).plan
    assert any("2 values are not finite" in note and "'a' (NaN)" in note for note in plan.summary())


def test_branches_and_their_outer_values_are_handed_over() -> None:
    chain = " ".join(f"v{i + 1} = Add (v{i}, w)" for i in range(PART))
    source = graph(
        f"v0 = Mul (x, w) {chain} b = If (c) <then_branch = t () => (float[2,4] u) {{ u = Add (v0, v3) }}, "
        f"else_branch = e () => (float[2,4] v) {{ v = Neg (v2) }}> y = Mul (b, v{PART})",
        "float[2,4] x, bool c", "float[2,4] y", "float[4] w", w=np.ones(4, np.float32),
    )  # fmt: skip
    found = measure_ranges(source, evidence({"x": np.ones((2, 4), np.float32), "c": np.array(True)}).samples, RangeRequest(TINY))
    assert (found["b"].largest, found["x"].largest, found[f"v{PART}"].largest) == (5.0, 1.0, PART + 1.0)


def test_what_was_measured_is_in_the_manifest_and_in_the_note(tmp_path: Path) -> None:
    path = overflowing.encoder(tmp_path / "model.onnx")
    (made,) = bertc.build(path, tmp_path / "out", targets=["null=fp16"])
    plan = made.manifest["precision"]
    assert plan["evidence"].endswith("synthetic samples")
    told = [island for island in plan["islands"] if island["by"] == "data"]
    assert any(island["measured"] > 65504 and island["sample"] and "holds 65504" in island["reason"] for island in told)
    notes = (tmp_path / "out" / "report.json").read_text("utf-8")
    assert f"islands come from measured values ({plan['evidence']})" in notes
    assert "stays in float32: reaches" in notes


def test_goldens_of_data_are_measured_beside_synthetic_samples_of_every_mask(tmp_path: Path) -> None:
    tiny.encoder(tmp_path / "model.onnx", tokenizer=True)
    (tmp_path / "texts.txt").write_text("two words\nand more\nwords\n")
    options = {"targets": ["null=fp16"], "goldens": "data", "data": str(tmp_path / "texts.txt")}
    (made,) = bertc.build(tmp_path / "model.onnx", tmp_path / "out", **options)
    assert made.manifest["precision"]["evidence"] == "3 rows of texts.txt and 12 synthetic samples"
