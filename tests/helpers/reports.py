"""Reports to make pages of: a real build's, and one that has everything a report may have, with names as long as they come."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from bertc.report import document as report

LONG = "model.encoder.layers.11.attention.self.query_key_value_projection_of_a_name_that_nobody_would_call_short"


def of(artifact: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((artifact / "report.json").read_text("utf-8"))
    return found


def full(plain: dict[str, Any]) -> dict[str, Any]:
    """`plain` with kernels, near-misses, islands, metrics with intervals, a broken limit, drift, the INT8 curve, and a section
    that no page knows."""
    made = copy.deepcopy(plain)
    rows = [_kernel(at, layer) for layer in ("", "encoder.layer.0", "encoder.layer.1") for at in range(3)]
    made["engine"] = {
        "kernels": {"count": 9, "host": 4, "layers": [3, 3], "rest": 3, "rows": rows},
        "engine_bytes": 3 * 2**30 + 7,
    }
    refusal = {
        "rule": "conv1d_gelu",
        "node": LONG,
        "op": "Gelu",
        "module": LONG,
        "reason": f"expected Mul, got <b>MatMul</b> ({LONG})",
    }
    made["passes"]["refusals"] = [refusal, {**refusal, "rule": "attention", "reason": "the mask is no mask (x)"}]
    made["passes"]["applied"][0]["error"] = None
    made["precision"]["islands"] = [{"node": LONG, "op": "Softmax", "reason": "sums in float32"}] * 3
    made["precision"]["clamps"] = [{"constant": "low", "was": -3.4e38, "now": -30000.0, "reason": "outside fp16"}]
    made["summary"] = report.summary_counts(made)
    verdict = made["verification"]
    verdict |= {"verdict": "failed", "data": f"{LONG}.txt", "violations": [_violation()], "drift": drift()}
    verdict["budget"] |= {"alarm": 0.01, "agreement": None}
    result = verdict["engine"] or verdict["graph"]
    result["metrics"] = [_metric("Spearman", -0.0012), _metric("NDCG@10", 0.02)]
    made["int8"] = int8()
    made["origin"] = {"commit": "abc", "of": [{"cells": 12}, {"cells": 0.125}]}
    return made


def _kernel(at: int, layer: str) -> dict[str, Any]:
    name = f"__myl_{'TranCastGathReshAdd' * 9}_myl0_{at}"
    return {"name": name, "type": "kgen", "dtype": "Half", "layer": layer, "onnx_nodes": [LONG, f"n{at}"], "profile": 0}


def _violation() -> dict[str, Any]:
    numbers = {"found": 0.02, "wanted": 0.005}
    return {
        "output": "task",
        "metric": "drop of NDCG@10",
        "worst": "row 3",
        "undecided": False,
        "why": " (an interval)",
    } | numbers


def _metric(name: str, drop: float) -> dict[str, Any]:
    ends = {"low": drop - 0.003, "high": drop + 0.004, "rows": 1200, "level": 0.95, "steady": False}
    return {"name": name, "source": 0.83, "artifact": 0.83 - drop, "drop": drop, "method": "paired bootstrap over rows"} | ends


def drift() -> dict[str, Any]:
    layers = [
        {"module": f"{LONG}.{i}", "node": f"n{i}", "rel": 1e-4 * (i + 1), "max_abs": 0.5, "cosine": 0.99999} for i in range(12)
    ]
    return {"compared": "the fp16 graph against the source, 12 goldens", "layers": layers, "seconds": 1.5}


def int8() -> dict[str, Any]:
    shares = (0.0, 0.25, 0.5, 1.0)
    curve = [
        {"share": s, "value": 0.83 - s / 50, "low": 0.82 - s / 50, "high": 0.84 - s / 50, "kept_in_fp": [LONG], "latency": 2.5}
        for s in shares
    ]
    return {"metric": "Spearman", "budget": 0.815, "curve": curve, "chosen": 2, "why": "the largest share that keeps the budget"}
