"""Kernels of BERT-base, BERT-large and XLM-R, unfused and fused

Kernels that TensorRT-RTX compiles for sm89 (counts, not times: no GPU was used), whole network up to the last hidden state,
dynamic batch 1 to 32 and length 1 to 256, random weights with random biases: the plain export against the same graph as `bertc
build` fuses and lowers it. MB a layer: what a middle layer's kernels read and write, weights included, at batch 8 and length 128.
Without a query bias (`no bq`) a layer needs one kernel less.
"""

from __future__ import annotations

from bertc import targets
from bertc.fusions import engine as fuse
from bertc.ops import expansion as canonical
from bertc.targets._tensorrt import layout as _trt_graph
from bertc.targets._tensorrt import lower_encoder as _lower_trt

from .bench_kernels import MODES, Count, count
from .models import exported
from .tools import table

WANTED = {"BERT-base": 99, "BERT-large": 195, "XLM-R-base": 103}  # kernels in fp16, fused


def run() -> str:
    rows = [row for name in WANTED for row in family(name)]
    rows += family("BERT-base", query_bias=False, modes=("fp16",))[1:]
    about = (__doc__ or "").partition("\n\n")[2].strip()
    return about + "\n\n" + table(["model", "form", "type", "a layer", "rest", "kernels", "wanted", "MB a layer"], rows)


def family(name: str, *, query_bias: bool = True, modes: tuple[str, ...] = MODES) -> list[list[str]]:
    """Rows of one model: the plain export in every mode, then the fused graph."""
    graph, dims = exported(name, query_bias=query_bias)
    spec = targets.parse_spec("tensorrt-rtx:sm89")
    table_of = targets.lowerings(spec)
    fused = fuse.fuse(graph, dims, lowerings={str(spec): table_of}).graph
    lowered = _trt_graph.tidy(canonical.expand(fused, _lower_trt.LOWERINGS))
    label = name if query_bias else f"{name}, no bq"
    rows = [_row(label, "plain export", mode, count(graph, mode)) for mode in modes]
    return rows + [_row(label, "fused", mode, count(lowered, mode), WANTED[name]) for mode in modes]


def _row(name: str, form: str, mode: str, found: Count, wanted: int | None = None) -> list[str]:
    limit = f"<= {wanted}" if wanted and mode == "fp16" else ""
    numbers = [str(found.layer), str(found.rest), str(found.total), limit, f"{found.nbytes / 1e6:.1f}"]
    print(name, form, mode, *numbers, flush=True)
    return [name, form, mode, *numbers]
