"""Choose how each GEMM is quantised, by the error of its product on the rows it read.

An activation is shifted and scaled per channel before it is quantised with one scale, and the weights and the bias take the
inverse: exact in real numbers, and free where the compiler puts it into the kernel that makes the activation anyway
(TensorRT-RTX does: benchmarks/bench_int8.py). The scale per channel is SmoothQuant's (Xiao et al., 2023, eq. 4), with alpha
chosen for each GEMM; the shift is Outlier Suppression+'s (Wei et al., 2023, eq. 2). The bias also takes the mean error that is
left (bias correction: Nagel et al., Data-Free Quantization, 2019, section 4.2, here on data).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from ..graph import Graph
from .calibration.observe import Observed, Sampled
from .sites import ATTENTION, Site, Sites, transposed, weight_of

ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
CLIP_FACTORS = (1.0, 0.9, 0.8, 0.7, 0.6)
FIT_ROWS = 384  # rows on which migrations are compared; the bias is corrected on all that were kept
QMAX = 127
# Of scales. SMALLEST is a float16 of six digits: the integers are those of the stored scale, so its rounding clips a little and
# no more. LARGEST leaves room for what a migration does to the largest value.
SMALLEST, LARGEST = 2.0**-18, 2.0**14
FLOOR = 1e-5


@dataclasses.dataclass(frozen=True)
class Weights:
    """int8 weights as [K,N] (or [N,K] for a Gemm with transB), a scale for each output channel, and what its bias gains [N]."""

    values: np.ndarray
    scales: np.ndarray
    bias: np.ndarray


@dataclasses.dataclass(frozen=True)
class Fitted:
    """One site with all that its Q/DQ pairs need. For GEMMs: x -> x * mul + add -> Q(scale); `mul` and `add` are None where the
    activation is taken as it is. For attention: one scale for each of q, k, softmax and v. `error`: of the product, relative."""

    site: Site
    scales: tuple[float, ...]
    mul: np.ndarray | None = None
    add: np.ndarray | None = None
    weights: Mapping[str, Weights] = dataclasses.field(default_factory=dict)
    alpha: float | None = None
    shift: str = "none"
    error: float = 0.0


def fit_sites(
    graph: Graph, sites: Sites, seen: Observed, *, bits: int = 8, migrate: bool = True
) -> tuple[dict[str, Fitted], dict[str, str]]:
    """(the sites that can be quantised, the others with the reason). `bits`: of the weights, 7 where a CPU would saturate.

    `migrate`: False takes every activation as it is (for comparison). What an int8 attention writes is never migrated: its
    kernel writes int8 itself, and would fall apart in 16 (measured).
    """
    nodes = {str(node.name): node for node in graph.model.graph}
    plain = {site.needs for site in sites.found if site.kind == ATTENTION}
    made: dict[str, Fitted] = {}
    refused: dict[str, str] = {}
    for site in sites.found:
        stats = [seen.tensors[name] for name in site.inputs]
        bad = next((why for name, each in zip(site.inputs, stats, strict=True) if (why := _unfit(name, each))), None)
        if bad:
            refused[site.name] = bad
        elif site.kind == ATTENTION:
            made[site.name] = Fitted(site, tuple(float16_scale(_range(each) / QMAX) for each in stats))
        else:
            top = 2 ** (bits - 1) - 1
            made[site.name] = _fit_gemms(site, [nodes[n] for n in site.nodes], stats[0], top, migrate and site.name not in plain)
    for name, each in list(made.items()):
        if each.site.needs and each.site.needs not in made:
            refused[name] = f"its output's projection is not quantised: {refused.get(each.site.needs, 'no site')}"
            del made[name]
    return made, refused


def _unfit(name: str, stats: Sampled) -> str | None:
    """Why a tensor cannot be quantised."""
    if stats.status != "ok":
        return f"{name} is {stats.status}"
    if stats.largest / QMAX > LARGEST:
        return f"{name} reaches {stats.largest:.3g}, its scale is outside float16"
    return None


def _range(stats: Sampled) -> float:
    """Of what attention reads: the range of least squared error. A softmax is mostly small, and 1 is seldom reached."""
    return stats.ranges()["mse"]


def float16_scale(value: float) -> float:
    """The float16 next to a scale: the graph may store it in half, and the integers must be those of the stored scale."""
    return float(np.float16(max(value, SMALLEST)))


@dataclasses.dataclass(frozen=True)
class _Migration:
    """What is done to an activation before it is quantised: x * mul + add; its weights are divided by mul."""

    mul: np.ndarray | None = None
    add: np.ndarray | None = None
    alpha: float | None = None
    shift: str = "none"

    def __call__(self, x: np.ndarray) -> np.ndarray:
        x = x if self.mul is None else x * self.mul
        return x if self.add is None else x + self.add

    def weights(self, w: np.ndarray) -> np.ndarray:
        return w if self.mul is None else w / self.mul[:, None]


@dataclasses.dataclass(frozen=True)
class _Trial:
    """One migration to quantise, its scale, and the squared error of the product relative to the product."""

    migration: _Migration
    scale: float
    error: float


def _fit_gemms(site: Site, nodes: list[ir.Node], stats: Sampled, top: int, migrate: bool) -> Fitted:
    """All GEMMs that read one activation share what is done to it: their weights are fitted side by side."""
    parts = [weight_matrix(node) for node in nodes]
    weights = np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
    few = stats.rows[:: max(1, len(stats.rows) // FIT_ROWS)]
    wanted = few @ weights
    migrations = _migrations(stats, weights) if migrate else [_Migration()]
    best = min(
        (_best_clip(few, weights, wanted, stats, migration, (1.0,), top) for migration in migrations), key=lambda each: each.error
    )
    best = _best_clip(few, weights, wanted, stats, best.migration, CLIP_FACTORS, top)
    made = {str(node.name): _weights(node, part, stats.rows, best, top) for node, part in zip(nodes, parts, strict=True)}
    migration = best.migration
    return Fitted(
        site, (best.scale,), migration.mul, migration.add, made, migration.alpha, migration.shift, float(np.sqrt(best.error))
    )


def weight_matrix(node: ir.Node) -> np.ndarray:
    """The weights of a GEMM as float32 [K,N]."""
    weight = weight_of(node)
    assert weight is not None and weight.const_value is not None
    array = weight.const_value.numpy().astype(np.float32, copy=False)
    return array.T if transposed(node) else array


def _migrations(stats: Sampled, weights: np.ndarray) -> Iterator[_Migration]:
    """Every alpha and shift, in numbers that float16 holds."""
    strongest = np.maximum(np.abs(weights).max(axis=1), FLOOR)
    for shift, middle in (
        ("none", np.zeros_like(stats.lows)), ("mean", stats.means), ("middle", (stats.lows + stats.highs) / 2),
    ):  # fmt: skip
        reach = np.maximum(np.maximum(stats.highs - middle, middle - stats.lows), FLOOR)
        for alpha in ALPHAS:
            factor = reach**alpha / strongest ** (1 - alpha)
            mul = np.clip(np.exp(np.log(factor).mean()) / factor, 2.0**-10, 2.0**10).astype(np.float16).astype(np.float32)
            add = None if shift == "none" else np.clip(-middle * mul, -6e4, 6e4).astype(np.float16).astype(np.float32)
            yield _Migration(mul, add, alpha, shift)


def _best_clip(
    x: np.ndarray, w: np.ndarray, wanted: np.ndarray, stats: Sampled, migration: _Migration, clips: tuple[float, ...], top: int
) -> _Trial:
    """The best of the clips. x [rows,K], w [K,N], wanted = x w."""
    moved, spread = migration(x), migration.weights(w)
    values, scales = quantise_weights(spread, top)
    stored = values * scales
    exact = wanted if migration.add is None else wanted + migration.add @ spread
    reach = float(max(np.abs(migration(end)).max() for end in (stats.lows, stats.highs)))
    size = float(np.square(wanted).mean()) or 1.0
    tried = []
    for clip in clips:
        scale = float16_scale(reach * clip / QMAX)
        lost = (
            float(np.square(quantise_dequantise(moved, scale) @ stored - exact).mean()) / size if np.isfinite(scale) else np.inf
        )
        tried.append(_Trial(migration, scale, lost))
    return min(tried, key=lambda each: each.error)


def quantise_dequantise(x: np.ndarray, scale: float) -> np.ndarray:
    """What Quantize and Dequantize leave of x."""
    return np.clip(np.rint(x / np.float32(scale)), -QMAX - 1, QMAX) * np.float32(scale)


def quantise_weights(weights: np.ndarray, top: int = QMAX) -> tuple[np.ndarray, np.ndarray]:
    """(integers as float32 [K,N], scale of each column [N]): symmetric, round half to even, the scale a float16.

    A column of zeros has the scale 1: one too small for float16 would keep the GEMM in float32.
    """
    reach = np.abs(weights).max(axis=0)
    scales = np.where(reach > 0, np.maximum(reach / top, SMALLEST), 1).astype(np.float16).astype(np.float32)
    return np.clip(np.rint(weights / scales), -top, top), scales


def _weights(node: ir.Node, w: np.ndarray, x: np.ndarray, best: _Trial, top: int) -> Weights:
    """The stored integers, and a bias that takes back the shift and the mean error of what was stored."""
    values, scales = quantise_weights(best.migration.weights(w), top)
    mean = x.mean(axis=0, dtype=np.float64)
    left = quantise_dequantise(best.migration(x), best.scale).mean(axis=0, dtype=np.float64)
    bias = (mean @ w - left @ (values * scales).astype(np.float64)).astype(np.float32)
    return Weights(stored_layout(node, values.astype(np.int8)), scales, bias)


def stored_layout(node: ir.Node, values: np.ndarray) -> np.ndarray:
    """[K,N] as the GEMM wants it: [N,K] for a Gemm with transB."""
    return np.ascontiguousarray(values.T) if transposed(node) else values
