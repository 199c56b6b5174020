"""What the search leaves in float, in which order, and where it stops; judged by a plain function in place of a model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import pytest
from graph_text import graph_of
from hypothesis import given, settings
from hypothesis import strategies as st

from bertc.core.errors import VerifyFailed
from bertc.data.samples import Layout, Sample
from bertc.quant import search as searching
from bertc.quant.fit import Fitted
from bertc.quant.gated import Gated
from bertc.quant.sites import ATTENTION, GEMM, Site
from bertc.verification import intervals as confidence
from bertc.verification.closeness import OutputResult
from bertc.verification.result import ComparisonResult

ROWS = 400
SAMPLES = tuple(Sample(f"{at}", {"x": np.zeros((8, 2))}, (), tuple(f"{at}.{row}" for row in range(8))) for at in range(ROWS // 8))


class Judge:
    """Every site quantised takes its own cost off the mean cosine, with a spread of a tenth of it."""

    def __init__(self, cost: Mapping[str, float], kept: Callable[[Collection[str]], float] = lambda names: 1.0) -> None:
        self.cost, self.kept, self.samples, self.asked = cost, kept, SAMPLES, []
        self.layout = None

    def __call__(self, quantised: Collection[str], samples: int | None = None) -> ComparisonResult:
        self.asked.append((tuple(quantised), samples))
        lost = sum(self.cost[name] for name in quantised)
        sqnr = -10 * math.log10(lost) if lost else math.inf
        out = OutputResult(**{**dict.fromkeys(OutputResult.__dataclass_fields__, 0), "name": "y", "sqnr_db": sqnr, "rows": ROWS})
        close = confidence.mean_cosine(1 - lost, lost / 10, ROWS)
        changed = round(ROWS * (1 - self.kept(quantised)))
        return ComparisonResult(
            "sentence-embedding",
            (out,),
            (),
            len(SAMPLES),
            ROWS,
            metrics=(close, confidence.changed_share("kept: nearest", changed, ROWS, ROWS)),
        )


def sites(sizes: Mapping[str, float], needs: Mapping[str, str] | None = None) -> dict[str, Fitted]:
    needs = needs or {}
    kinds = {name: ATTENTION if name in needs else GEMM for name in sizes}
    return {n: Fitted(Site(n, kinds[n], (n,), (f"{n}.in",), "", flops, needs.get(n, "")), (1.0,)) for n, flops in sizes.items()}


def search(judge: Any, fitted: Mapping[str, Fitted], limit: float | None, total: float | None = None) -> searching.SearchResult:
    total = total or sum(each.site.flops for each in fitted.values())
    return searching.search_int8(judge, fitted, total, limit, lambda done, of: None)


def test_without_a_limit_all_stay_and_one_point_is_measured() -> None:
    judge = Judge({"a": 0.1, "b": 0.2})
    found = search(judge, sites({"a": 1, "b": 1}), None)
    assert found.chosen == ("a", "b")
    assert len(judge.asked) == len(found.curve) == 1
    assert found.curve[0].share == 1.0


def test_the_most_error_for_its_flops_leaves_int8_first() -> None:
    cost = {"small": 0.002, "large": 0.004, "fine": 0.0001, "good": 0.0001}
    judge = Judge(cost)
    found = search(judge, sites({"small": 1, "large": 10, "fine": 10, "good": 10}), 0.0045)
    assert found.chosen == ("large", "fine", "good"), "twice the damage of `small`, and ten times its work"
    assert [names for names, few in judge.asked[1:5]] == [("small",), ("large",), ("fine",), ("good",)]
    assert all(
        few is not None and sum(len(s.origins) for s in SAMPLES[:few]) >= searching.ROWS_ALONE for _, few in judge.asked[:4]
    )
    assert "within 0.0045" in found.why


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(1e-6, 1e-2), st.floats(0.5, 20)), min_size=1, max_size=14), st.floats(1e-5, 5e-2))
def test_what_is_chosen_is_within_the_limit_and_one_step_more_is_not(drawn: list[tuple[float, float]], limit: float) -> None:
    """The whole interval is within it; and one step more in int8 would break it, if any was left in float."""
    cost = {f"s{at}": each for at, (each, _) in enumerate(drawn)}
    fitted = sites({f"s{at}": flops for at, (_, flops) in enumerate(drawn)})
    judge = Judge(cost)
    found = search(judge, fitted, limit)
    point = searching.measure_point(judge, found.chosen, (), 0.0)
    assert searching.within_limit(point, limit)
    back = [name for name in sorted(fitted, key=lambda n: -cost[n] / fitted[n].site.flops) if name not in found.chosen]
    if back:
        more = searching.measure_point(judge, (*found.chosen, back[-1]), (), 0.0)
        assert not searching.within_limit(more, limit)
    chosen = found.point
    assert set(chosen.left_in_float) == set(fitted) - set(found.chosen)
    assert chosen.share == pytest.approx(
        sum(fitted[n].site.flops for n in found.chosen) / sum(f.site.flops for f in fitted.values())
    )
    shares = [each.share for each in found.curve]
    assert shares == sorted(shares, reverse=True)
    assert len(set(shares)) == len(shares)


def test_attention_goes_with_its_projection_and_may_go_alone() -> None:
    sizes, needs = {"qkv": 3.0, "att": 2.0, "out": 1.0}, {"att": "out"}
    bad_projection = search(Judge({"qkv": 1e-5, "att": 1e-5, "out": 0.1}), sites(sizes, needs), 0.01)
    assert bad_projection.chosen == ("qkv",)
    bad_attention = search(Judge({"qkv": 1e-5, "att": 0.1, "out": 1e-5}), sites(sizes, needs), 0.01)
    assert bad_attention.chosen == ("qkv", "out")


def test_decisions_beside_the_metric_are_kept_too() -> None:
    """The cosine allows everything; the nearest neighbours do not allow `b`."""
    judge = Judge({"a": 1e-6, "b": 2e-6}, kept=lambda names: 0.9 if "b" in names else 0.99)
    assert search(judge, sites({"a": 1, "b": 1}), 0.01).chosen == ("a",)


@pytest.mark.parametrize("limit", [0.0, -0.1])
def test_nothing_fits_an_impossible_limit(limit: float) -> None:
    found = search(Judge({"a": 0.01, "b": 0.02}), sites({"a": 1, "b": 1}), limit)
    assert found.chosen == ()
    assert found.curve[found.at].share == 0
    assert set(found.curve[found.at].left_in_float) == {"a", "b"}


def test_too_few_rows_to_show_a_drop_say_so() -> None:
    """A rate over 400 rows of which none changed may still be 0.9 %: no int8 is to blame for that."""

    def judge(quantised: Collection[str], samples: int | None = None) -> ComparisonResult:
        kept = confidence.changed_share("kept: class", 0, ROWS, ROWS)
        return ComparisonResult("sequence-classification", (), (), 1, ROWS, metrics=(kept,))

    judge.samples = SAMPLES  # type: ignore[attr-defined]
    judge.layout = None
    found = search(judge, sites({"a": 1, "b": 1}), 0.005)
    assert found.chosen == ()
    assert found.why.startswith("400 held-out rows are too few to show a drop of kept: class within 0.005")
    assert len(found.curve) == 1, "no time is spent on a search that cannot end well"


def test_decisions_that_the_rows_of_the_curve_cannot_show_are_shown_by_all_of_them() -> None:
    """96 rows of which none changed leave 3.8 % possible, 1,600 leave 0.23 %."""
    many = tuple(Sample(f"{at}", {"x": np.zeros((8, 2))}, (), ("",) * 8) for at in range(200))

    def judge(quantised: Collection[str], samples: int | None = None) -> ComparisonResult:
        rows = 8 * (len(many) if samples is None else samples)
        changed = round(0.03 * rows) if "b" in quantised else 0
        out = dataclasses.replace(Judge({})((), 1).outputs[0], sqnr_db=20.0 if changed else 60.0)
        kept = confidence.changed_share("kept: class", changed, rows, rows)
        return ComparisonResult("sequence-classification", (out,), (), rows // 8, rows, metrics=(kept,))

    judge.samples = many  # type: ignore[attr-defined]
    judge.layout = None
    found = search(judge, sites({"a": 1, "b": 1}), 0.005)
    assert found.chosen == ("a",)
    assert found.point.measure.rows == 1600
    assert {point.measure.rows for point in found.curve} == {96}, "one table, one sample"


def test_the_share_is_of_all_gemms_and_half_of_them_is_on_the_curve() -> None:
    found = search(Judge(dict.fromkeys("abcd", 0.001)), sites(dict.fromkeys("abcd", 1.0)), 1.0, total=8.0)
    assert found.curve[0].share == 0.5
    assert {point.share for point in found.curve} == {0.5, 0.0}


def test_nothing_to_judge_by_is_an_error() -> None:
    def judge(quantised: Collection[str], samples: int | None = None) -> ComparisonResult:
        return ComparisonResult("custom", (), (), 1, ROWS, "no decision for the task 'custom': numbers only")

    judge.samples = SAMPLES  # type: ignore[attr-defined]
    judge.layout = None
    with pytest.raises(VerifyFailed, match=r"no decision for the task 'custom': numbers only; .*--task"):
        search(judge, sites({"a": 1}), None)


def test_a_point_as_json_is_short_and_whole() -> None:
    point = search(Judge({"a": 1 / 3e3, "b": 1 / 7e3}), sites({"a": 1, "b": 2}), None).curve[0].to_json()
    assert list(point) == ["share", "value", "low", "high", "drop", "kept_in_fp", "measures"]
    assert point["low"] < point["value"] < point["high"]
    assert point["drop"] == pytest.approx(1 - point["value"], abs=1e-8)
    assert all(len(str(abs(point[key]))) <= 12 for key in ("share", "value", "low", "high", "drop"))


def test_rows_are_counted_along_their_own_axis() -> None:
    """An output [length, batch, width] with a row that is all masked: what differs there counts for nothing, the rest does."""
    graph = graph_of(
        """<ir_version: 10, opset_import: ["" : 20]> g (float[batch,length,8] x, float[batch,length] attention_mask)
           => (float[length,batch,8] y) <float[8,8] w> { m = MatMul (x, w) y = Transpose <perm = [1, 0, 2]> (m) }""",
        w=np.eye(8, dtype=np.float32),
    )
    x = np.random.default_rng(0).standard_normal((2, 2, 8)).astype(np.float32)
    mask = np.array([[1, 1], [0, 0]], np.float32)
    samples = (Sample("rows", {"x": x, "attention_mask": mask}, dead_rows=(1,)),)
    judge = searching.Judge.over(Gated(graph, {}), samples, "features", None, Layout.of(graph.inputs, graph.outputs))

    def other(at: tuple[Any, ...]) -> ComparisonResult:
        answer = judge.truth[0]["y"].copy()
        answer[at] += 1
        return judge.compare(lambda feeds: {"y": answer})

    in_the_dead_row, in_the_other = other(np.s_[:, 1]), other(np.s_[1, 0])
    assert in_the_dead_row.outputs[0].max_abs == 0 and in_the_dead_row.rows == 1
    assert in_the_other.outputs[0].max_abs == pytest.approx(1)
