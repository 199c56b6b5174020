"""FP8 (E4M3: 4 bits of exponent, 3 of mantissa, no infinity): the same Q/DQ pairs with another type and simpler scales.

Scales are the largest magnitude over 448, the largest number of the type (Micikevicius et al., FP8 Formats for Deep Learning,
2022, section 3). Nothing is migrated between activation and weights: a floating type rounds small channels as finely as large
ones. The bias takes the mean error that is left, as for int8.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ..graph import Graph
from .calibration.observe import Observed, Sampled
from .fit import Fitted, Weights, float16_scale, stored_layout, weight_matrix
from .sites import Site, Sites

TYPE = np.dtype(ml_dtypes.float8_e4m3fn)
TOP = 448.0


def fit_fp8_sites(graph: Graph, sites: Sites, seen: Observed) -> tuple[dict[str, Fitted], dict[str, str]]:
    """(the sites that can be FP8, the others with the reason)."""
    nodes = {str(node.name): node for node in graph.model.graph}
    made: dict[str, Fitted] = {}
    refused: dict[str, str] = {}
    for site in sites.found:
        stats = seen.tensors[site.inputs[0]]
        if stats.status != "ok":
            refused[site.name] = f"{site.inputs[0]} is {stats.status}"
        else:
            made[site.name] = _fit_site(site, [nodes[name] for name in site.nodes], stats)
    return made, refused


def _fit_site(site: Site, nodes: list[ir.Node], stats: Sampled) -> Fitted:
    reach = float(max(np.abs(stats.lows).max(), np.abs(stats.highs).max()))
    scale = float16_scale(reach / TOP)
    x = stats.rows
    read = quantise_dequantise(x, np.float32(scale))
    made, lost, whole = {}, 0.0, 0.0
    for node in nodes:
        w = weight_matrix(node)
        values, scales = quantise_weights(w)
        kept = values.astype(np.float32) * scales
        bias = (x.mean(axis=0, dtype=np.float64) @ w - read.mean(axis=0, dtype=np.float64) @ kept).astype(np.float32)
        made[str(node.name)] = Weights(stored_layout(node, values), scales, bias)
        wanted = x @ w
        lost += float(np.square(read @ kept - wanted).sum())
        whole += float(np.square(wanted).sum())
    return Fitted(site, (scale,), weights=made, error=float(np.sqrt(lost / (whole or 1.0))))


def quantise_weights(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(float8_e4m3fn [K,N], float32 scale of each column [N], each a float16)."""
    scales = np.array([float16_scale(reach / TOP) if reach else 1.0 for reach in np.abs(weights).max(axis=0)], np.float32)
    return _stored(weights, scales), scales


def quantise_dequantise(x: np.ndarray, scale: np.ndarray | np.float32) -> np.ndarray:
    """What Quantize and Dequantize leave of x."""
    return np.asarray(_stored(x, scale).astype(np.float32) * scale)


def _stored(x: np.ndarray, scale: np.ndarray | np.float32) -> np.ndarray:
    # Beyond the largest number of the type there is no infinity but NaN: a scale that was rounded down must not lead there.
    return np.clip(x / scale, -TOP, TOP).astype(TYPE)
