"""int8 attention: the heads and lengths that TensorRT-RTX has a kernel for

A BERT of two layers and four heads, random weights, dynamic batch 1 to 8, all of it in int8 from made up data: kernels of the
engine, and how many of its attentions are one kernel. bertc leaves attention in float16 where there is none.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

import bertc
from bertc.quant import engine_choice as worth
from bertc.source.opening import open_source
from bertc.targets import BuildRequest, Int8Attention, tensorrt_rtx
from bertc.targets._tensorrt import lower_common

from .bench_lowbit import write
from .tools import table

HEADS = (8, 16, 20, 24, 32, 40, 48, 56, 64, 72, 80, 96, 128)
LENGTHS = (256, 384, 512, 513, 640, 1024, 2048, 4096)
SMS = ("sm80", "sm86", "sm120")
SHORT = 128  # tokens of the data
ODD, PROFILE = (13, 20, 26), ["batch=1:8:32,length=1:128:256"]
HEAD = ["SM", "size of a head", "longest", "kernels fp16", "kernels int8", "attentions in one int8 kernel"]


def run() -> str:
    kept = tensorrt_rtx.INT8_ATTENTION
    tensorrt_rtx.INT8_ATTENTION = Int8Attention(max(LENGTHS), HEADS)  # all of them, to see what comes of it
    try:
        with tempfile.TemporaryDirectory() as folder:
            rows = list(_rows(Path(folder)))
    finally:
        tensorrt_rtx.INT8_ATTENTION = kept
    assert kept is not None
    told = (
        f"So bertc asks for int8 attention with heads of {', '.join(map(str, kept.sizes))}, over {kept.longest} places at most."
    )
    return f"{str(__doc__).partition(chr(10) * 2)[2].strip()}\n\n{table(HEAD, rows)}\n\n{told}\n\n{wider()}"


def wider() -> str:
    """What it takes off an engine that heads are made wider by zeros."""
    kept, rows = lower_common.WIDER, []
    with tempfile.TemporaryDirectory() as folder:
        for size in ODD:
            source, data = _export(Path(folder), size)
            for most in (1.0, kept):
                lower_common.WIDER = most
                rows.append(_widened(source, data, size))
    lower_common.WIDER = kept
    head = ["size of a head", "made", "kernels fp16", "MiB moved at 8x128", "GFLOP", "kernels int8"]
    return f"The same with heads that are not aligned, as they are and made wider by zeros in the weights:\n\n{table(head, rows)}"


def _widened(source: Path, data: Path, size: int) -> list[str]:
    out = source.parent / "built"
    (half,) = bertc.build(source, out, targets=["tensorrt-rtx:sm89=fp16"], profiles=PROFILE, verify=False, force=True)
    ranges, graph = half.profiles, half.graph()
    splits = (v.const_value for name, v in graph.model.graph.initializers.items() if name.endswith("/split"))
    wide = max(int(split.numpy()[-1]) for split in splits if split is not None)
    request = BuildRequest(graph, out / "graph.onnx", out, "fp16", ("sm89",), ranges)
    found = worth.estimate_engine(graph, half.manifest["engine"], request)
    options = {"targets": ["tensorrt-rtx:sm89=int8-static"], "profiles": PROFILE, "verify": False, "data": data}
    (low,) = bertc.build(source, out, force=True, **options)
    moved = [f"{found.nbytes / 2**20:.1f}", f"{found.flops / 1e9:.2f}"]
    return [str(size), str(wide), str(found.kernels), *moved, str(low.manifest["engine"]["kernels"]["count"])]


def _rows(folder: Path) -> Iterator[list[str]]:
    for size in HEADS:
        source, data = _export(folder, size)
        yield _row(source, data, "sm89", size, LENGTHS[0])
        for sm, longest in _more(size):
            yield _row(source, data, sm, size, longest)


def _more(size: int) -> Iterator[tuple[str, int]]:
    """Lengths where there is a kernel for short ones, of two sizes; and other SMs around the longest."""
    if size in (32, 64):
        yield from (("sm89", longest) for longest in LENGTHS[1:])
        yield from ((sm, longest) for sm in SMS for longest in (512, 513))


def _export(folder: Path, size: int) -> tuple[Path, Path]:
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    wide = {"hidden_size": 4 * size, "num_attention_heads": 4, "intermediate_size": 256, "num_hidden_layers": 2}
    BertModel(BertConfig(**wide, vocab_size=200, max_position_embeddings=max(LENGTHS))).save_pretrained(folder / f"bert{size}")
    out, data = folder / f"export{size}", folder / f"data{size}.npz"
    bertc.export(folder / f"bert{size}", out)
    found = open_source(str(out))
    write(dataclasses.replace(found, dims={n: dataclasses.replace(d, max=SHORT) for n, d in found.dims.items()}), data)
    return out, data


def _row(source: Path, data: Path, sm: str, size: int, longest: int) -> list[str]:
    counts, whole = [], 0
    for mode in ("fp16", "int8-static"):
        options = {"targets": [f"tensorrt-rtx:{sm}={mode}"], "profiles": [f"batch=1:4:8,length=1:64:{longest}"], "verify": False}
        given = {} if mode == "fp16" else {"data": data}
        (made,) = bertc.build(source, source.parent / "built", force=True, **options, **given)
        kernels = made.manifest["engine"]["kernels"]
        counts.append(str(kernels["count"]))
        whole = sum("mha" in row["name"] for row in kernels["rows"])
    found = [sm, str(size), str(longest), *counts, f"{whole} of 2"]
    print(found, flush=True)
    return found
