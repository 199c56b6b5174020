"""An encoder layer as text, rows through it, and what a Q/DQ pair is by ONNX's own words: help for the tests of quantisation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from graph_text import graph_of
from models import session

from bertc.core.profiles import Range
from bertc.data.unpadded import RealPositions, UnpaddedSample
from bertc.graph.model import Graph
from bertc.quant.attention import Attention
from bertc.quant.calibration.observe import Observed, observe_sites, require_samples
from bertc.quant.fit import Fitted, fit_sites
from bertc.quant.sites import Sites, find_sites
from bertc.targets._tensorrt import quantised_check as _int8

WIDTH, INNER, BATCH, LENGTH = 32, 64, 2, 5
PROFILES = ({"B": Range(1, BATCH, 8), "S": Range(1, LENGTH, 16)},)
LAYER = """<ir_version: 10, opset_import: ["" : 20]> g (float[B,S,32] x, float[B,1,S] mask) => (float[B,S,32] y)
  <float[32,32] wq, float[32,32] wk, float[32,32] wv, float[32,32] wo, float[32] bq, float[32] bo, float[32,64] w1,
   float[64] b1, float[64,32] w2, float[32,4] wt, float[4,32] wu, float scale = {0.18}>
  { q0 = MatMul (x, wq) q1 = Add (q0, bq) q = Mul (q1, scale) k = MatMul (x, wk) v = MatMul (x, wv)
    kt = Transpose <perm = [0, 2, 1]> (k) raw = MatMul (q, kt) masked = Add (raw, mask) p = Softmax <axis = -1> (masked)
    context = MatMul (p, v) o0 = MatMul (context, wo) o = Add (o0, bo) s = Add (x, o)
    h0 = MatMul (s, w1) h1 = Add (b1, h0) h = Relu (h1) m = MatMul (h, w2) r = Add (s, m)
    t = MatMul (r, wt) u = MatMul (t, wu) y = Add (r, u) }"""


def layer(outlier: float = 1.0) -> Graph:
    """The layer; `outlier` is what one channel of its input is multiplied with, and its weights divided by."""
    rng = np.random.default_rng(7)
    shapes = {"wq": (32, 32), "wk": (32, 32), "wv": (32, 32), "wo": (32, 32), "w1": (32, 64), "w2": (64, 32)}
    weights = {name: (rng.standard_normal(shape) / 6).astype(np.float32) for name, shape in shapes.items()}
    for name in ("wq", "wk", "wv"):
        weights[name][3] /= outlier
    return graph_of(LAYER, **weights)


def feeds(seed: int = 0, length: int = LENGTH, outlier: float = 1.0, batch: int = 1) -> dict[str, np.ndarray]:
    x = np.random.default_rng(seed).standard_normal((batch, length, WIDTH)).astype(np.float32)
    x[..., 3] *= outlier
    return {"x": x + np.float32(0.2), "mask": np.zeros((batch, 1, length), np.float32)}


def rows(count: int, change: Callable[[np.ndarray], None] | None = None, outlier: float = 1.0) -> Iterator[UnpaddedSample]:
    for seed in range(count):
        made = feeds(seed, 3 + seed % 7, outlier)
        if change:
            change(made["x"])
        yield UnpaddedSample(made, f"row {seed}")


def padded(seed: int, live: int, garbage: float) -> UnpaddedSample:
    """One row with two places of padding at its start, full of `garbage`."""
    made = feeds(seed, live + 2)
    made["x"][:, :2] = garbage
    made["mask"][..., :2] = -1e9
    return UnpaddedSample(made, f"padded {seed}", RealPositions("S", np.array([False] * 2 + [True] * live)))


def seen(graph: Graph, samples: Iterator[UnpaddedSample], count: int) -> tuple[Sites, Observed]:
    sites = find_sites(graph, feeds(batch=BATCH), Attention(_int8.ATTENTION, PROFILES))
    return sites, require_samples(observe_sites(graph, sites, samples, count, lambda done, total: None))


def fitted(graph: Graph, count: int = 24, outlier: float = 1.0, **how: object) -> dict[str, Fitted]:
    sites, observed = seen(graph, rows(count, outlier=outlier), count)
    return fit_sites(graph, sites, observed, **how)[0]  # type: ignore[arg-type]


def fake(x: np.ndarray, scale: np.ndarray | float) -> np.ndarray:
    """DequantizeLinear(QuantizeLinear(x)) with zero-point 0, by the operators' specification: x / scale rounded half to even,
    saturated to [-128, 127], times scale; all in float32."""
    scale = np.asarray(scale, np.float32)
    return np.clip(np.rint(np.asarray(x, np.float32) / scale), -128, 127).astype(np.int8).astype(np.float32) * scale


def run(graph: Graph, given: dict[str, np.ndarray], name: str = "y") -> np.ndarray:
    """One output of a graph."""
    return np.asarray(session(graph).run([name], given)[0])
