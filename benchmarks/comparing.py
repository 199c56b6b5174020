"""Two graphs on the same feeds: ONNX Runtime sessions without optimisations, and the distance that counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def session(model: Path | bytes) -> Any:
    """An ONNX Runtime CPU session with all optimisations off."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"])


def distance(got: Sequence[np.ndarray], wanted: Sequence[np.ndarray], feeds: Mapping[str, np.ndarray]) -> float:
    """The worst max|got - wanted| / max|wanted| over the outputs, at the places the mask attends to.

    What stands at a padded place nobody reads; where every place before it is masked too (a causal model, padded left) it is
    undefined. Infinite for another shape or a value that is not finite.
    """
    places = feeds.get("attention_mask")
    return max(_distance(np.asarray(a), np.asarray(b), places) for a, b in zip(got, wanted, strict=True))


def _distance(a: np.ndarray, b: np.ndarray, places: np.ndarray | None) -> float:
    if a.shape != b.shape:
        return float("inf")
    a, b = _attended(a, places), _attended(b, places)
    if not np.isfinite(a).all():
        return float("inf")
    peak = float(np.abs(b).max(initial=0.0))
    return float(np.abs(a.astype(np.float64) - b).max(initial=0.0)) / peak if peak else float(np.abs(a).max(initial=0.0))


def _attended(array: np.ndarray, places: np.ndarray | None) -> np.ndarray:
    """The rows of [batch, length, ...] at the last `length` places, of keys and values [batch, heads, length, size] at all."""
    if places is None or array.ndim < 2 or array.shape[0] != places.shape[0]:
        return array
    if array.ndim == 4 and array.shape[2] == places.shape[1]:
        return np.moveaxis(array, 2, 1)[places > 0]
    recent = places[:, -array.shape[1] :]
    return array[recent > 0] if array.ndim > 2 and recent.shape == array.shape[:2] else array
