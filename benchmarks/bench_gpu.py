"""Kernels of our own on a GPU

Each Triton kernel of `bertc.plugins.kernels`, in fp16 at the sizes that `bertc kernels` compiles it for, against torch on the
same numbers. `of copy`: the fewest bytes that any kernel could move, over the time, as a share of what this GPU copies a second
(1 would be as fast as a copy). `over torch`: torch's time divided by the kernel's. `PTX`: the compiled PTX, started as TensorRT
starts it (inputs, int32 scalars, outputs), gives the same numbers. Medians, with the caches emptied between runs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from .tools import table

LIMIT_SECONDS = 330  # nothing new begins after it; what was left out is said
LIMIT = 2e-2  # fp16 sums of some hundred numbers near 1, in another order
EMPTY = "No GPU was at hand yet: the command above fills the cells"
WANTED = "wanted: at least 0.8 of a copy but for attention and convolution, and never slower than torch"
HEAD = ["kernel", "variant", "us", "of copy", "torch, us", "over torch", "off", "PTX"]
Tensors = dict[str, Any]


def run() -> str:
    missing = lacking()
    if missing:
        print(f"error: {missing}", file=sys.stderr)
        raise SystemExit(3)
    import torch

    from bertc.plugins.kernels import launches

    began, rows, left = time.monotonic(), [], []
    rate = copy_rate()
    for launch in launches().values():
        for name, example in launch.examples.items():
            label = f"{launch.name} {name}".strip()
            if time.monotonic() - began > LIMIT_SECONDS:
                left.append(label)
                continue
            rows.append([label, *measured(launch, name, example, rate)])
    said = f"\n\nNot measured within {LIMIT_SECONDS} s: {', '.join(left)}." if left else ""
    device = torch.cuda.get_device_name()
    return f"{device}, copies at {rate / 1e9:.0f} GB/s, fp16; {WANTED}.\n\n{table(HEAD, rows)}{said}"


def empty() -> str:
    """The table with empty cells; triton names the kernels."""
    from bertc.plugins.kernels import launches

    labels = [f"{launch.name} {name}".strip() for launch in launches().values() for name in launch.examples]
    rows = [[label, *[""] * (len(HEAD) - 1)] for label in labels]
    return f"{EMPTY}; {WANTED}.\n\n{table(HEAD, rows)}"


def lacking() -> str:
    """What this machine lacks, with what to do; empty where nothing does."""
    if find_spec("triton") is None:
        return "kernels are compiled by triton, which is not installed: pip install 'bertc[kernels]'"
    import torch

    if not torch.cuda.is_available():
        return f"no GPU that torch {torch.__version__} can use; run it where nvidia-smi lists one, with torch built for CUDA"
    return ""


def copy_rate() -> float:
    """Bytes a second, read and written, of the largest copy."""
    import torch
    from triton.testing import do_bench

    source = torch.empty(2**29, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / (do_bench(lambda: target.copy_(source), return_mode="median") / 1e3)


def measured(launch: Any, name: str, example: Any, rate: float) -> list[str]:
    """The best variant of an example: time, share of a copy, torch's time, error, whether the PTX does the same."""
    import torch
    from triton.testing import do_bench

    from bertc.plugins.kernels import _launch, _ptx

    major, minor = torch.cuda.get_device_capability()
    shapes = _ptx.example_shapes(launch, example)
    inputs, outputs = made(launch, example, shapes)
    variants = launch.fitting(launch.dims(shapes, example.attributes))
    baseline = BASELINES[launch.name]
    wanted = baseline(inputs, example.attributes)
    try:
        kernel = _ptx.compile_example(launch, name, 10 * major + minor, variant=variants[0])
    except _launch.Unsupported as refused:
        return ["-", "-", "-", "-", "-", "-", str(refused)]
    times = {}
    for variant in variants:
        launch.run(inputs, outputs, example.attributes, variant)
        times[variant] = do_bench(lambda at=variant: launch.run(inputs, outputs, example.attributes, at), return_mode="median")
    best = min(times, key=lambda at: times[at])
    off = difference(outputs, wanted)
    again = {key: torch.full_like(each, 77) for key, each in outputs.items()}
    start(launch, kernel, inputs, again, example, variants[0])
    same = difference(again, {key: each.double() for key, each in outputs.items()}) <= LIMIT
    torch_time = do_bench(lambda: baseline(inputs, example.attributes), return_mode="median")
    _, least = _ptx.traffic(launch, example, best)
    share = least / (times[best] / 1e3) / rate
    shown = [f"{times[best] * 1e3:.1f}", f"{share:.2f}", f"{torch_time * 1e3:.1f}", f"{torch_time / times[best]:.2f}"]
    return [str(best), *shown, f"{off:.1e}" + " WRONG" * (off > LIMIT), "the same" if same else "DIFFERENT"]


def made(launch: Any, example: Any, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Tensors, Tensors]:
    """Seeded numbers near 1, indices that are there, and outputs that are not written yet."""
    import torch

    words = {"fp16": torch.float16, "fp32": torch.float32, "i32": torch.int32, "i8": torch.int8, "fp8e4nv": torch.float8_e4m3fn}
    torch.manual_seed(0)
    tensors: Tensors = {}
    for each in launch.tensors().values():
        if each.name not in shapes:
            continue
        word = words[launch.type_of(each, example.types)]
        empty = torch.empty(shapes[each.name], dtype=word, device="cuda")
        tensors[each.name] = empty.random_(0, 2) if word == torch.int32 else empty
        if word in (torch.float16, torch.float32):
            empty.normal_(0, 0.05 if each.name == "w" else 1)
    if "cu_seqlens" in tensors:
        rows = shapes["cu_seqlens"][0] - 1
        tensors["cu_seqlens"] = (torch.arange(rows + 1, device="cuda") * (shapes["qkv"][0] // rows)).int()
    if "scale" in tensors:
        tensors["scale"].fill_(4 / 127)
    if "statistics" in tensors and launch.name == "conv1d_groupnorm_gelu":
        tensors["statistics"].fill_(1)
    if "index" in tensors:
        wanted, known = shapes["index"][0], shapes["x"][0]
        tensors["index"] = torch.arange(wanted, device="cuda", dtype=torch.int32) if wanted <= known else sparse(wanted, known)
    return (
        {each.name: tensors[each.name] for each in launch.inputs if each.name in tensors},
        {each.name: tensors[each.name] for each in launch.outputs if each.name in tensors},
    )


def sparse(wanted: int, known: int) -> Any:
    """Every so many positions hold a token."""
    import torch

    index = torch.full((wanted,), -1, dtype=torch.int32, device="cuda")
    index[:: wanted // known] = torch.arange(known, dtype=torch.int32, device="cuda")
    return index


def difference(got: Tensors, wanted: Tensors) -> float:
    """The largest, beside the largest number; quantised outputs are one step from the other side of a tie at most."""
    worst = 0.0
    for name, exact in wanted.items():
        off = (got[name].double() - exact.double()).abs().max().item()
        worst = max(worst, off / max(exact.double().abs().max().item(), 1.0))
    return worst


def start(launch: Any, kernel: Any, inputs: Tensors, outputs: Tensors, example: Any, variant: int) -> None:
    """As TensorRT does: the PTX loaded by the driver, inputs, int32 scalars, outputs."""
    import ctypes

    import torch

    driver = ctypes.CDLL("libcuda.so.1")

    def done(code: int, what: str) -> None:
        if code:
            raise RuntimeError(f"{what} of {kernel.launch}: CUDA error {code}")

    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    done(driver.cuModuleLoadData(ctypes.byref(module), kernel.ptx.encode() + b"\0"), "cuModuleLoadData")
    done(driver.cuModuleGetFunction(ctypes.byref(function), module, kernel.entry.encode()), "cuModuleGetFunction")
    if kernel.shared > 48 * 1024:
        most_shared = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        done(driver.cuFuncSetAttribute(function, most_shared, kernel.shared), "cuFuncSetAttribute")
    dims = launch.dims({name: tuple(each.shape) for name, each in {**inputs, **outputs}.items()}, example.attributes)
    grid = launch.grid_of(dims, launch.constants_of(dims, example.attributes, variant))
    arguments: list[Any] = [ctypes.c_void_p(inputs[t.name].data_ptr()) for t in launch.inputs if t.name in inputs]
    arguments += [ctypes.c_int32(make(dims)) for make in launch.scalars.values()]
    arguments += [ctypes.c_void_p(outputs[t.name].data_ptr()) for t in launch.outputs if t.name in outputs]
    pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(each) for each in arguments))
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    done(driver.cuLaunchKernel(function, *grid, kernel.threads, 1, 1, kernel.shared, stream, pointers, None), "cuLaunchKernel")
    torch.cuda.synchronize()
    done(driver.cuModuleUnload(module), "cuModuleUnload")


def embeddings(t: Tensors, a: Mapping[str, Any]) -> Tensors:
    from torch.nn import functional as f

    total = t["word"][t["ids"].long()]
    total = total + t["position"][: t["ids"].shape[1]] if "position" in t else total
    total = total + t["type_"][t["types"].long()] if "types" in t else total
    return {"out": f.layer_norm(total, total.shape[-1:], t["gamma"], t.get("beta"), a.get("epsilon", 1e-5))}


def skip_layernorm(t: Tensors, a: Mapping[str, Any]) -> Tensors:
    import torch
    from torch.nn import functional as f

    total = t["x"] + t["skip"] + t.get("bias", 0)
    if a.get("rms"):
        y = f.rms_norm(total, total.shape[-1:], t["gamma"], 1e-5)
    else:
        y = f.layer_norm(total, total.shape[-1:], t["gamma"], t.get("beta"), 1e-5)
    if "scale" in t:  # the time of a quantisation too; its numbers are held against the oracle without a GPU
        (y / t["scale"]).round().clamp(-128, 127).to(torch.int8)
    return {"y": y, "total": total}


def bias_gelu(t: Tensors, a: Mapping[str, Any]) -> Tensors:
    from torch.nn import functional as f

    return {"out": f.gelu(t["x"] + t["bias"], approximate="none" if a.get("form", "erf") == "erf" else "tanh")}


def gather(t: Tensors, a: Mapping[str, Any]) -> Tensors:
    index = t["index"].long()
    return {"out": t["x"][index.clamp(min=0)] * (index >= 0)[:, None]}


def attention(t: Tensors, a: Mapping[str, Any]) -> Tensors:
    """Rows of one length, so that torch's own kernel has nothing to pad."""
    import torch
    from torch.nn import functional as f

    rows = t["cu_seqlens"].shape[0] - 1
    tokens, _, heads, size = t["qkv"].shape
    length = tokens // rows
    q, k, v = t["qkv"].view(rows, length, 3, heads, size).permute(2, 0, 3, 1, 4)
    mask = None
    if "bias" in t:
        at = torch.arange(length, device="cuda")
        mask = t["bias"][:, at[None] - at[:, None] + t["bias"].shape[1] // 2][None]
    if "keys" in t:
        mask = t["keys"].view(rows, 1, 1, length)
    return {"out": f.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).reshape(tokens, heads, size)}


def convolved(t: Tensors, a: Mapping[str, Any]) -> Any:
    from torch.nn import functional as f

    return f.conv1d(t["x"], t["w"].permute(2, 1, 0), t.get("b"), stride=a.get("stride", 1), groups=a.get("groups", 1))


def conv(t: Tensors, a: Mapping[str, Any]) -> Tensors:
    from torch.nn import functional as f

    return {"out": f.gelu(convolved(t, a))}


def conv_layer(t: Tensors, a: Mapping[str, Any]) -> Tensors:
    from torch.nn import functional as f

    made = convolved(t, a).transpose(1, 2)
    return {"out": f.gelu(f.layer_norm(made, made.shape[-1:], t["gamma"], t["beta"], 1e-5).transpose(1, 2))}


def statistics(t: Tensors, a: Mapping[str, Any]) -> Tensors:
    import torch

    made = convolved(t, a).float()
    return {"statistics": torch.stack([made.mean(2), (made.var(2, correction=0) + 1e-5).rsqrt()], 2)}


def conv_group(t: Tensors, a: Mapping[str, Any]) -> Tensors:
    from torch.nn import functional as f

    mean, scale = t["statistics"][..., :1], t["statistics"][..., 1:]
    made = (convolved(t, a).float() - mean) * scale * t["gamma"][:, None] + t["beta"][:, None]
    return {"out": f.gelu(made).half()}


BASELINES: dict[str, Callable[[Tensors, Mapping[str, Any]], Tensors]] = {
    "embeddings": embeddings,
    "skip_layernorm": skip_layernorm,
    "bias_gelu": bias_gelu,
    "remove_padding": gather,
    "restore_padding": gather,
    "packed_attention": attention,
    "conv1d_gelu": conv,
    "conv1d_layernorm_gelu": conv_layer,
    "conv1d_statistics": statistics,
    "conv1d_groupnorm_gelu": conv_group,
}
