"""`bertc bench`: what is timed, that answers are compared first, the statistics, and what is said where nothing can run."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import tiny

import bertc
from bertc.artifact import manifest as artifact
from bertc.bench import baselines, timings
from bertc.bench import interleaved as bench
from bertc.bench.timings import Timing
from bertc.cli import _main as cli
from bertc.core.errors import InputError, Missing, VerifyFailed
from bertc.core.profiles import Dim, Shape
from bertc.data import Sample
from bertc.data import samples as samples_module
from bertc.source import GivenSource

Capture = pytest.CaptureFixture[str]
DIMS = {"batch": Dim("batch"), "length": Dim("length", max=32)}
PROFILE = "batch=1:2:4,length=1:8:32"


def shape(batch: int, length: int, weight: int = 0) -> Shape:
    return Shape((("batch", batch), ("length", length)), weight)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`cpu` and `null`, artifacts of `m.onnx`; `other.onnx` is another model."""
    folder = tmp_path_factory.mktemp("bench")
    tiny.encoder(folder / "m.onnx", tokenizer=True)
    tiny.encoder(folder / "other.onnx", changed=0.5)
    for target, name in (("onnxruntime=fp32", "cpu"), ("onnxruntime=fp16", "half"), ("null=fp32", "null")):
        bertc.build(folder / "m.onnx", folder / name, targets=[target], profiles=[PROFILE])
    return folder


# Shapes


def test_shapes_are_read_in_both_forms() -> None:
    assert bench.parse_shapes(["1x16,2x8", "length=9,batch=3", "1x16"], DIMS) == (shape(1, 16), shape(2, 8), shape(3, 9))
    assert str(shape(2, 8)) == "2x8" and shape(2, 8).tokens == 16 and shape(2, 8).rows == 2
    for wrong in ("8", "1x2x3", "ax2", "batch=1", "batch=1,width=3", "1x", "batch=1,batch=2"):
        with pytest.raises(InputError, match="is not batchxlength, as in 8x128"):
            bench.parse_shapes([wrong], DIMS)


def test_shapes_of_profiles_and_of_traffic(built: Path, tmp_path: Path) -> None:
    found = artifact.open_artifact(built / "cpu")
    assert bench.default_shapes(found) == (shape(1, 8), shape(2, 8))
    requests = tmp_path / "r.jsonl"
    rows = [{"length": 7, "count": 60}, {"lengths": [3, 8], "count": 20}, {"length": 30, "count": 5}]
    requests.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    shapes, note = bench.traffic_shapes(requests, found)
    assert shapes == (shape(1, 8, 60), shape(2, 8, 20), shape(1, 32, 5))
    assert "padded to lengths 8, 32; 3 of 3 shapes, 100% of the tokens" in note


# Statistics


def test_percentiles_that_too_few_calls_cannot_show_are_left_out() -> None:
    few, many = Timing("a", shape(2, 8), np.arange(1, 10) / 1e3), Timing("a", shape(2, 8), np.arange(1, 102) / 1e3)
    assert (few.to_json()["p50_ms"], few.to_json()["p90_ms"], few.to_json()["p99_ms"]) == (pytest.approx(5), None, None)
    facts = many.to_json()
    assert (facts["p50_ms"], facts["p90_ms"], facts["p99_ms"]) == (pytest.approx(51), pytest.approx(91), pytest.approx(100))
    assert facts["iqr_ms"] == pytest.approx(50)
    assert facts["samples_per_s"] == pytest.approx(2 / 0.051) and facts["tokens_per_s"] == pytest.approx(16 / 0.051)


def test_the_interval_of_a_ratio_holds_the_true_one_and_not_one() -> None:
    """The other side takes 1.5 times as long; what disturbs a round disturbs both sides."""
    rng = np.random.default_rng(0)
    noise = rng.lognormal(0, 0.3, 200)
    subject = Timing("a", shape(1, 8, 3), 0.01 * noise * rng.lognormal(0, 0.02, 200))
    other = Timing("b", shape(1, 8, 3), 0.015 * noise * rng.lognormal(0, 0.02, 200))
    found = timings.time_ratio(subject, other)
    assert 1.0 < found.low < 1.5 < found.high and found.high - found.low < 0.1
    assert timings.time_ratio(subject, subject).ratio == 1.0


def test_the_interval_of_a_ratio_of_few_rounds_holds_the_ratio_to_the_last_bit() -> None:
    """Of three rounds the ratio itself is often an end; of these three the lower end was 0.4895104895104896, a bit above it."""
    ours, theirs = np.array([0.000429, 0.000159, 0.000661]), np.array([0.00021, 0.000141, 0.000362])
    rng = np.random.default_rng(1)
    for _ in range(300):
        found = timings.time_ratio(Timing("a", shape(1, 8), ours), Timing("b", shape(1, 8), theirs))
        assert found.low <= found.ratio <= found.high
        both = timings.traffic_ratio(
            [Timing("a", shape(1, n, n), ours * n) for n in (8, 9)], [Timing("b", shape(1, 8), theirs)] * 2
        )
        assert both.low <= both.ratio <= both.high
        ours, theirs = rng.lognormal(-8, 1, (2, 3))


def test_traffic_weighs_shapes_by_their_requests() -> None:
    def side(short: float, long: float) -> list[Timing]:
        return [Timing("x", shape(1, 8, 9), np.full(5, short)), Timing("x", shape(1, 32, 1), np.full(5, long))]

    found = timings.traffic_ratio(side(0.01, 0.10), side(0.02, 0.10))
    assert found.ratio == pytest.approx((9 * 0.02 + 0.10) / (9 * 0.01 + 0.10)) == found.low == found.high


# Runs


def test_a_run_against_the_source_in_every_form(built: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ["bench", str(built / "cpu"), "--against", str(built / "m.onnx"), "--against", str(built / "cpu"), "--padded"]
    outputs = ["--csv", str(tmp_path / "b.csv"), "--plot", str(tmp_path / "b.svg"), "--json"]
    assert cli.run([*words, "--shapes", "1x4,2x8", "--rounds", "3", "--threads", "1", *outputs]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    names = ["cpu", "cpu, padded", "ONNX Runtime, unfused", str(built / "cpu")]
    assert list(found["contenders"]) == names
    assert (
        set(found["skipped"]) == {"PyTorch eager", "torch.compile"} and "not a PyTorch model" in found["skipped"]["torch.compile"]
    )
    assert set(found["largest_relative_difference"]) == {*names} - {"ONNX Runtime, unfused"}
    assert all(difference <= 1e-5 for difference in found["largest_relative_difference"].values())
    assert [(t["contender"], t["shape"]["length"]) for t in found["timings"]] == [(n, length) for length in (4, 8) for n in names]
    assert all(t["calls"] == 3 and t["p50_ms"] > 0 and t["p99_ms"] is None for t in found["timings"])
    assert len(found["ratios"]) == 6 and all(r["low"] <= r["ratio"] <= r["high"] for r in found["ratios"])
    assert found["conditions"]["threads"] == 1
    rows = list(csv.DictReader((tmp_path / "b.csv").open(encoding="utf-8")))
    assert len(rows) == 8 and rows[0]["contender"] == "cpu" and rows[0]["ratio"] == "" and float(rows[1]["ratio"]) > 0
    assert ">ONNX Runtime, unfused<" in (tmp_path / "b.svg").read_text("utf-8")
    said = " ".join(err.split())
    assert "1 thread each (--threads)" in said and "no p99: it needs 100 rounds" in said and "not timed: torch.compile" in said


def test_a_wrong_answer_is_not_timed(built: Path, capsys: Capture) -> None:
    words = ["bench", str(built / "cpu"), "--shapes", "1x4", "--rounds", "2", "--against", str(built / "other.onnx")]
    assert cli.run(words) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "cpu and ONNX Runtime, unfused have different outputs" in said


def test_each_pair_is_judged_by_the_coarser_precision(built: Path) -> None:
    """fp16 differs from fp32 by more than fp32's budget, which is no fault."""
    found = artifact.open_artifact(built / "half")
    result = bench.time_artifact(found, bench.BenchRequest((GivenSource(str(built / "cpu")),), (shape(2, 8),), rounds=2))
    assert 1e-5 < max(result.agreement.values()) < 1e-2


def test_traffic_is_weighed(built: Path, tmp_path: Path, capsys: Capture) -> None:
    lengths = tmp_path / "l.txt"
    lengths.write_text("7 60\n30 5\n", encoding="utf-8")
    words = ["bench", str(built / "cpu"), "--lengths", str(lengths), "--rounds", "2", "--against", str(built / "cpu"), "--json"]
    assert cli.run(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert [r["shape"] for r in found["ratios"]] == ["1x8", "1x32", "traffic"]
    assert [t["weight"] for t in found["timings"]] == [60, 60, 5, 5]


def test_threads_are_those_that_were_asked_for(built: Path) -> None:
    import torch

    found = artifact.open_artifact(built / "cpu")
    assert baselines.with_threads(found.manifest, 3)["engine"]["session"]["intra_op_num_threads"] == 3
    assert "intra_op_num_threads" not in found.manifest["engine"]["session"]
    before = torch.get_num_threads()
    with baselines.torch_threads(before + 2):
        assert torch.get_num_threads() == before + 2
    assert torch.get_num_threads() == before


def test_pytorch_eager_and_a_compiler_that_fails() -> None:
    import torch

    from bertc import FactoryModel

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU()).eval()
    made = FactoryModel(module, {"input": torch.ones(2, 8)}, {"input": ("batch", None)}, ("out",))
    feeds = {"input": np.linspace(-1, 1, 24, dtype=np.float32).reshape(3, 8)}
    eager = baselines.eager(made, ("out",))
    with torch.no_grad():
        wanted = module(torch.from_numpy(feeds["input"])).numpy()
    assert np.array_equal(eager.outputs(eager.prepare(feeds)())["out"], wanted)
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        found = baselines.compiled(made, ("out",), [samples_module.Sample("3 rows", feeds)])
    assert isinstance(found, baselines.Skipped) and "does not compile here" in found.reason


# Where nothing can run


def test_an_artifact_without_an_engine_gets_no_time(built: Path, capsys: Capture) -> None:
    assert cli.run(["bench", str(built / "null"), "--shapes", "2x8", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["executed"] is False and "timings" not in found
    assert "engine: NOT RUN (the null target has no engine): nothing was timed" in " ".join(err.split())
    assert cli.run(["bench", str(built / "null"), "--require-engine"]) == 3
    assert "--require-engine" in capsys.readouterr().err
    with pytest.raises(Missing, match="cannot run here"):
        bench.time_artifact(artifact.open_artifact(built / "null"), bench.BenchRequest(shapes=(shape(1, 4),)))


ERRORS = [
    ("bench {o}", "is not a bertc artifact"),
    ("bench {a} --shapes 8", "is not batchxlength"),
    ("bench {a} --shapes 1x8 --lengths {m}", "give one"),
    ("bench {a} --shapes 1x8 --rounds 0", "--rounds"),
    ("bench {a} --shapes 1x8 --threads 0", "--threads"),
    ("bench {a} --shapes 1x8 --threads -1", "--threads"),
    ("bench {a} --shapes 1x8 --against {m}x", "did you mean 'm.onnx'?"),
    ("bench {a} --lengths {o}", "no requests at"),
    ("bench {a} --shapes 0x8", "batch=0 is not a size that the model takes"),
]


@pytest.mark.parametrize(("line", "said"), ERRORS, ids=[line for line, _ in ERRORS])
def test_errors_of_bench(line: str, said: str, built: Path, capsys: Capture) -> None:
    words = line.format(a=built / "cpu", m=built / "m.onnx", o=built / "none").split()
    assert cli.run([*words, "--json"]) == 2
    out, err = capsys.readouterr()
    assert said in " ".join(err.split()) and json.loads(out)["exit_code"] == 2


def test_outputs_that_are_missing_are_no_agreement(built: Path) -> None:
    """A contender that answers another question is refused, not compared on what is left."""
    found = artifact.open_artifact(built / "cpu")
    good = baselines.artifact_contender(found, 1)
    bad = baselines.Contender("bad", "fp32", good.prepare, lambda result: {"other": result["last_hidden_state"]})
    samples = bench._samples(found, bench.BenchRequest(shapes=(shape(1, 4),)))
    calls = {c.name: [c.prepare(s.feeds) for s in samples] for c in (good, bad)}
    with pytest.raises(VerifyFailed, match="expected outputs last_hidden_state"):
        bench._agree([good, bad], samples, calls, found)


def test_a_label_that_is_a_tie_is_agreement_and_told(tmp_path: Path) -> None:
    """Two scores that are equal within the budget: either label is right, as it was when the artifact was built."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[batch, 4] x) => (int64[batch] best) <float one = {1.0}> {
        scores = Mul(x, one) best = ArgMax<axis = 1, keepdims = 0>(scores) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    assert cli.run(["build", str(tmp_path / "m.onnx"), "--target", "onnxruntime", "-o", str(tmp_path / "out"), "-q"]) == 0
    found = artifact.open_artifact(tmp_path / "out")
    feeds = {"x": np.float32([[0, 5, 5 + 2e-5, 1], [9, 1, 4, 0]])}
    sample, good = Sample("two rows", feeds), baselines.artifact_contender(found, 1)

    def other(*labels: int) -> baselines.Contender:
        return baselines.Contender("other", "fp32", good.prepare, lambda result: {"best": np.array(labels)})

    def agree(contender: baselines.Contender) -> tuple[dict[str, float], list[str]]:
        calls = {c.name: [c.prepare(feeds)] for c in (good, contender)}
        return bench._agree([good, contender], [sample], calls, found)

    apart, notes = agree(other(1, 0))
    assert apart == {"other": 0.0} and notes == ["other: 'best' differs in 1 of 2 values, 1 tie"]
    assert agree(other(2, 0))[1] == []
    with pytest.raises(VerifyFailed, match="nothing was timed"):
        agree(other(3, 0))
