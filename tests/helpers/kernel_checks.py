"""Each kernel in the interpreter against its numpy oracle: a check makes a case of given sizes, asserts, and returns the error.

A check takes `run` (interpreting.call in its process, or the same of a changed file), so that a faulty kernel goes through the
very asserts that the kernels pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bertc.plugins import bias_gelu, conv1d_gelu, embeddings, sdpa, skip_layernorm, skip_rmsnorm

Run = Callable[..., dict[str, Any]]
# float32: sums of up to some hundred numbers near 1. Half precision: the rounding of numbers below 8 (a unit in the last position
# is 2^-8 for fp16, of which rounding makes half, and 2^-5 for bf16, which the interpreter cuts off), and that of an attention's
# weights.
LIMIT = {"fp32": 4e-6, "fp16": 4.2e-3, "bf16": 3.3e-2}
NUMPY = {"fp32": np.float32, "fp16": np.float16}


def numbers(seed: int, *shape: int, kind: str = "fp32", scale: float = 1.0) -> np.ndarray:
    """Seeded, and rounded to what the kernel gets, so that the oracle gets the same."""
    made = np.clip(np.random.default_rng(seed).standard_normal(shape), -3, 3) * scale
    if kind == "bf16":
        return (made.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return made.astype(NUMPY[kind])


def close(got: np.ndarray, wanted: np.ndarray, kind: str, limit: float | None = None) -> float:
    """The largest difference; NaN where the oracle has none is one."""
    got, wanted = got.astype(np.float64), wanted.astype(np.float64)
    assert got.shape == wanted.shape
    if not got.size:
        return 0.0
    assert np.isfinite(got).all(), f"{np.count_nonzero(~np.isfinite(got))} of {got.size} are not written, or not finite"
    error = float(np.abs(got - wanted).max())
    most = LIMIT[kind] if limit is None else limit
    assert error <= most, f"off by {error:.2e}, limit {most:.1e} in {kind}"
    return error


def wide(array: np.ndarray | None) -> Any:
    return None if array is None else array.astype(np.float64)


def given(**tensors: np.ndarray | None) -> dict[str, np.ndarray]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def check_embeddings(
    run: Run, batch: int, length: int, width: int, *, kind: str = "fp32", ids: type = np.int64, tables: str = "pt",
    positions: int = 0, types: bool = True, beta: bool = True, variant: int | None = None,
) -> float:  # fmt: skip
    """tables: p a position table, t a type table; positions: rows of explicit positions, 0 for none."""
    r = np.random.default_rng(batch * 1000 + length)
    tokens, kinds = r.integers(-7, 7, (batch, length)).astype(ids), r.integers(0, 2, (batch, length)).astype(ids)
    places = r.integers(0, length + 3, (positions, length)).astype(ids) if positions else None
    word, gamma = numbers(1, 7, width, kind=kind), numbers(2, width, kind=kind, scale=0.5)
    position = numbers(3, length + 3, width, kind=kind) if "p" in tables else None
    type_ = numbers(4, 2, width, kind=kind) if "t" in tables else None
    shift, kinds = numbers(5, width, kind=kind) if beta else None, kinds if types and "t" in tables else None
    inputs = given(ids=tokens, positions=places, types=kinds, word=word, position=position, type_=type_, gamma=gamma, beta=shift)
    got = run(
        "embeddings", "embeddings", inputs, {"out": ((batch, length, width), kind)}, {"epsilon": 1e-12}, variant, as_type=kind
    )
    arrays = (wide(word), wide(position), wide(type_), wide(gamma), wide(shift))
    return close(got["out"], embeddings.reference(tokens, places, kinds, *arrays, epsilon=1e-12), kind)


def check_skip_layernorm(
    run: Run, rows: int, width: int, *, kind: str = "fp32", bias: bool = True, beta: bool = True, rms: bool = False,
    total: bool = True, quantised: str | None = None, offset: float = 0.0, limit: float | None = None, variant: int | None = None,
) -> float:  # fmt: skip
    """offset: the mean of x, beside which a variance that is no sum of centred squares loses its digits."""
    x, skip = (
        numbers(1, rows, width, kind=kind) + np.asarray(offset, NUMPY.get(kind, np.float32)),
        numbers(2, rows, width, kind=kind),
    )
    b, gamma = numbers(3, width, kind=kind) if bias else None, numbers(4, width, kind=kind, scale=0.5)
    shift = numbers(5, width, kind=kind) if beta and not rms else None
    scale = np.array([2 / 127 if quantised == "i8" else 2 / 448], np.float32) if quantised else None
    for each in (gamma, shift):
        if quantised and each is not None:
            each[::2] *= 2e-3  # numbers that float8 has no exponent for
    outputs = {"y": ((rows, width), kind)} | ({"total": ((rows, width), kind)} if total else {})
    outputs |= {"quantised": ((rows, width), quantised)} if quantised else {}
    inputs = given(x=x, skip=skip, bias=b, gamma=gamma, beta=shift, scale=scale)
    attributes = {"rms": rms, "epsilon": 1e-5}
    got = run("skip_layernorm", "skip_layernorm", inputs, outputs, attributes, variant, as_type=kind, but=("scale",))
    reference = skip_rmsnorm.reference if rms else skip_layernorm.reference
    arrays = [wide(each) for each in ((x, skip, b, gamma) if rms else (x, skip, b, gamma, shift))]
    y, summed = reference(*arrays, epsilon=1e-5)
    if total:
        close(got["total"], summed, kind)
    if scale is not None:
        check_quantised(got["quantised"], y / float(scale[0]), str(quantised))
    return close(got["y"], y, kind, limit)


def check_quantised(got: np.ndarray, exact: np.ndarray, kind: str) -> None:
    """The nearest number that the type has, or one as near as float32 can tell; saturated."""
    got = got.astype(np.float64)
    if kind == "i8":
        bounded = np.clip(exact, -128, 127)
        assert np.array_equal(got, np.rint(got)) and np.abs(got).max(initial=0) <= 128
        assert np.abs(got - bounded).max(initial=0) <= 0.5 + 1e-4
    else:
        bounded = np.clip(exact, -448, 448)
        step = 2.0 ** (np.clip(np.floor(np.log2(np.maximum(np.abs(bounded), 2.0**-9))), -6, 8) - 3)
        assert np.array_equal(got * 2**9, np.rint(got * 2**9)) and np.abs(got).max(initial=0) <= 448
        assert (np.abs(got - bounded) <= 0.5 * step + 4e-6 * np.abs(exact) + 2e-5).all()


def check_bias_gelu(
    run: Run, rows: int, width: int, *, kind: str = "fp32", form: str = "erf", variant: int | None = None
) -> float:
    x, bias = numbers(1, rows, width, kind=kind, scale=2.0), numbers(2, width, kind=kind)
    got = run("bias_gelu", "bias_gelu", {"x": x, "bias": bias}, {"out": (x.shape, kind)}, {"form": form}, variant, as_type=kind)
    return close(got["out"], bias_gelu.reference(wide(x), wide(bias), form), kind)


def check_gather(run: Run, rows: int, wanted: int, width: int, *, kind: str = "fp32", variant: int | None = None) -> float:
    """restore_padding of a scattered batch, then remove_padding of it: the tokens again."""
    r = np.random.default_rng(rows + wanted)
    kept = np.sort(r.permutation(wanted)[:rows])
    index = np.full(wanted, -1)
    index[kept] = np.arange(len(kept))
    packed = numbers(1, len(kept), width, kind=kind)
    got = run(
        "padding", "restore_padding", {"x": packed, "index": index}, {"out": ((wanted, width), kind)}, {}, variant, as_type=kind
    )
    whole = np.zeros((wanted, width), np.float64)
    whole[kept] = packed
    assert np.array_equal(got["out"].astype(np.float64), whole)
    back = {"x": got["out"], "index": kept.astype(np.int32)}
    again = run("padding", "remove_padding", back, {"out": ((len(kept), width), kind)}, {}, variant, as_type=kind)
    assert np.array_equal(again["out"].astype(np.float64), packed.astype(np.float64))
    return 0.0


def check_attention(
    run: Run, lengths: Sequence[int], heads: int, size: int, *, kind: str = "fp32", bias: bool = False, keys: bool = False,
    ids: type = np.int32, variant: int | None = None, scale: float = 0.0,
) -> float:  # fmt: skip
    """Row by row against `plugins/sdpa.py`, where each row is alone: what leaks from one into another is an error."""
    ends = np.cumsum([0, *lengths])
    qkv = numbers(1, ends[-1], 3, heads, size, kind=kind)
    longest = max(lengths, default=0) or 1
    added = numbers(2, heads, 2 * longest - 1, kind=kind) if bias else None
    hidden = (np.arange(ends[-1]) % 3 == 1) * np.float32(-1e4) if keys else None  # a row of one key that is hidden sees it
    of_keys = None if hidden is None else (hidden + np.arange(ends[-1]) % 5 * np.float32(0.5)).astype(qkv.dtype)
    inputs = given(qkv=qkv, cu_seqlens=ends.astype(ids), bias=added, keys=of_keys)
    outputs = {"out": ((ends[-1], heads, size), kind)}
    got = run("packed_attention", "packed_attention", inputs, outputs, {"scale": scale}, variant, as_type=kind)["out"]
    worst = 0.0
    for start, end in itertools.pairwise(ends):
        if start < end:
            at = np.arange(end - start)
            mask = None if added is None else added[:, at[None] - at[:, None] + longest - 1][None]
            if of_keys is not None:
                mask = (0 if mask is None else wide(mask)) + wide(of_keys[start:end])[None, None, None]
            q, k, v = (wide(qkv[start:end, part]).transpose(1, 0, 2)[None] for part in range(3))
            wanted = sdpa.attend(q, k.swapaxes(2, 3), v, mask, scale or size**-0.5)[0].transpose(1, 0, 2)
            worst = max(worst, close(got[start:end], wanted, kind))
    return worst


def check_conv(
    run: Run, batch: int, channels: int, length: int, made: int, taps: int, *, kind: str = "fp32", norm: str = "none",
    stride: int = 1, pads: tuple[int, int] = (0, 0), dilation: int = 1, groups: int = 1, form: str = "erf", bias: bool = True,
    beta: bool = True, offset: float = 0.0, limit: float | None = None, variant: int | None = None,
) -> float:  # fmt: skip
    """offset: a bias beside which a variance that is no sum of centred squares loses its digits."""
    x, w = numbers(1, batch, channels, length, kind=kind), numbers(2, made, channels // groups, taps, kind=kind, scale=0.3)
    b = numbers(3, made, kind=kind) + np.asarray(offset, NUMPY.get(kind, np.float32)) if bias else None
    gamma = numbers(4, made, kind=kind, scale=0.5) if norm != "none" else None
    shift = numbers(5, made, kind=kind) if beta and norm != "none" else None
    named = {"strides": (stride,), "pads": pads, "dilations": (dilation,), "group": groups, "norm": norm, "form": form}
    wanted = conv1d_gelu.reference(wide(x), wide(w), wide(b), wide(gamma), wide(shift), **named)
    attributes = {"stride": stride, "pad": pads[0], "pad_end": pads[1], "dilation": dilation, "groups": groups}
    inputs = given(x=x, w=w.transpose(2, 1, 0), b=b, gamma=gamma, beta=shift)
    outputs, more = {"out": (wanted.shape, kind)}, {"form": form}
    name = {"none": "conv1d_gelu", "layer": "conv1d_layernorm_gelu", "group": "conv1d_groupnorm_gelu"}[norm]
    if norm == "layer":
        more["epsilon"] = 1e-5
    if norm == "group":
        bare = {each: inputs[each] for each in ("x", "w", "b") if each in inputs}
        room = {"statistics": ((batch, made, 2), "fp32")}
        one = None if variant is None else min(variant, 1)
        found = run("conv1d_gelu", "conv1d_statistics", bare, room, {**attributes, "epsilon": 1e-5}, one, as_type=kind)
        inputs["statistics"] = found["statistics"]
    got = run("conv1d_gelu", name, inputs, outputs, {**attributes, **more}, variant, as_type=kind, but=("statistics",))
    return close(got["out"], wanted, kind, limit)
