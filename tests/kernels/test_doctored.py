"""A kernel with a fault does not pass the checks of test_interpreted: each is a fault that is easily made."""

# ruff: noqa: E501 -- a fault is one line of a table
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import interpreting
import kernel_checks as checks
import pytest
from kernel_checks import Run

EDGE, MASK, ORDER, MATHS = "the edge of a block", "a missing mask", "an argument at the wrong position", "the arithmetic"
ATTENTION = ("packed_attention", lambda run: checks.check_attention(run, [1, 0, 17, 64, 65], 2, 24, bias=True))
HIDDEN = ("packed_attention", lambda run: checks.check_attention(run, [1, 0, 17, 64, 65], 2, 24, keys=True))
FIRST_LAYER = ("conv1d_gelu", lambda run: checks.check_conv(run, 2, 1, 163, 33, 10, stride=5, pads=(2, 1)))
GROUP = ("conv1d_gelu", lambda run: checks.check_conv(run, 1, 3, 150, 8, 3, norm="group"))
LAYER = ("conv1d_gelu", lambda run: checks.check_conv(run, 1, 3, 150, 9, 3, norm="layer"))
LAYERNORM = ("skip_layernorm", lambda run: checks.check_skip_layernorm(run, 5, 37))
INT8 = ("skip_layernorm", lambda run: checks.check_skip_layernorm(run, 5, 129, quantised="i8"))
FP8 = ("skip_layernorm", lambda run: checks.check_skip_layernorm(run, 5, 129, quantised="fp8e4nv"))
EMBEDDINGS = ("embeddings", lambda run: checks.check_embeddings(run, 3, 5, 37))
GELU = ("bias_gelu", lambda run: checks.check_bias_gelu(run, 5, 513))
PADDING = ("padding", lambda run: checks.check_gather(run, 11, 23, 37))
FAULTS = [
    (EDGE, *ATTENTION, ("for j in range(0, length, BN)", "for j in range(0, length - BN, BN)")),
    (EDGE, *ATTENTION, ("d[\"T\"] // c[\"BM\"] + d[\"rows\"]", "d[\"T\"] // c[\"BM\"] + d[\"rows\"] - 1")),
    (EDGE, *ATTENTION, ("if first < length:", "if first + 1 < length:")),
    (EDGE, *ATTENTION, ("if first <= tile:", "if first < tile:")),
    (MASK, *ATTENTION, ('scores = tl.where(seen[None, :], scores, float("-inf"))', "scores = scores + 0.0")),
    (MASK, *ATTENTION, ("seen = key < length", "seen = key <= length")),
    (MASK, *ATTENTION, ("mask=asked)\n", "mask=(query < length + 1)[:, None] & (d < D)[None, :])\n")),
    (MATHS, *ATTENTION, ("context * kept[:, None]", "context")),
    (MATHS, *ATTENTION, ("key[None, :] - query[:, None]", "query[:, None] - key[None, :]")),
    (MATHS, *HIDDEN, ("keys + start.to(tl.int64) + key,", "keys + key,")),
    (EDGE, *HIDDEN, ("tl.load(keys + start.to(tl.int64) + key, mask=seen", "tl.load(keys + start.to(tl.int64) + key, mask=key <= length")),
    (EDGE, *FIRST_LAYER, ("for r0 in range(0, K * each, BR)", "for r0 in range(BR, K * each + BR, BR)")),
    (EDGE, *FIRST_LAYER, ("(at >= 0) & (at < T)", "(at >= -1) & (at < T)")),
    (EDGE, *FIRST_LAYER, ("(at >= 0) & (at < T)", "(at >= 0) & (at < T - 1)")),
    (MATHS, *FIRST_LAYER, ("t * STRIDE - PAD", "t * STRIDE + PAD")),
    (MASK, *GROUP, ("centred = tl.where((t < T2)[None, :], made - own[:, None], 0.0)", "centred = made - own[:, None]")),
    (MATHS, *GROUP, ("apart * apart * (before * counted / (before + counted))", "0.0")),
    (MASK, *LAYER, ("made = tl.where(kept[:, None], made - (tl.sum(made, 0) / N)[None, :], 0.0)", "made -= (tl.sum(made, 0) / N)[None, :]")),
    (MASK, *LAYERNORM, ("kept = tl.where(inside, total, 0.0)", "kept = total + 0.0")),
    (EDGE, *LAYERNORM, ("(row < rows)[:, None]", "(row < rows - 1)[:, None]")),
    (EDGE, *LAYERNORM, ('cdiv(d["R"], c["ROWS"]),)', 'd["R"] // c["ROWS"],)')),
    (MATHS, *LAYERNORM, ("tl.rsqrt(tl.sum(kept * kept, 1) / H + EPS)", "tl.rsqrt(tl.sum(kept * kept, 1) / (H - 1) + EPS)")),
    (MATHS, *LAYERNORM, ("    if total is not None:\n        tl.store(total + at, added", "    if total is not None:\n        tl.store(total + at, 0.5 * added")),
    (ORDER, *LAYERNORM, ("x, skip, bias, gamma, beta, scale, rows, y,", "x, skip, bias, beta, gamma, scale, rows, y,")),
    (MATHS, *INT8, ("((bounded + 12582912.0) - 12582912.0)", "bounded")),
    (MATHS, *INT8, ("-128.0), 127.0", "-128.0), 128.0")),
    (MATHS, *FP8, ("bits + 0x7FFFF + ((bits >> 20) & 1)", "bits")),
    (MATHS, *FP8, ("< 0.015625, small", "< 0.0, small")),
    (EDGE, *EMBEDDINGS, ("index + size, index", "index + size - 1, index")),
    (MASK, *EMBEDDINGS, ("total = tl.where(inside, total, 0.0)", "total = total + 0.0")),
    (MATHS, *EMBEDDINGS, ("at = token % places", "at = token")),
    (ORDER, *EMBEDDINGS, ("word, position, type_, gamma, beta,", "position, word, type_, gamma, beta,")),
    (EDGE, *GELU, ("(columns < N)[None, :]", "(columns < N - 1)[None, :]")),
    (EDGE, *GELU, ('cdiv(d["N"], c["BLOCK"]))', 'd["N"] // c["BLOCK"])')),
    (MASK, *PADDING, ("inside & there[:, None]", "inside")),
    (EDGE, *PADDING, ("at < known)\n    got", "at < known - 1)\n    got")),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "file", "check", "change"), FAULTS, ids=[f"{f[1]}-{f[3][1][:30]}" for f in FAULTS])
def test_a_faulty_kernel_is_caught(
    run: Run, tmp_path: Path, kind: str, file: str, check: Callable[[Run], float], change: tuple[str, str]
) -> None:
    """By a wrong number, by what was not written, by the order of arguments, or by a read outside of every tensor."""
    doctored = interpreting.changed(file, tmp_path, change)

    def faulty(_: str, *given: Any, **named: Any) -> dict[str, Any]:
        return run(doctored, *given, **named)

    wrong_order = ValueError if kind == ORDER else AssertionError
    with pytest.raises((AssertionError, wrong_order)) as caught:
        check(faulty)
    if kind == ORDER:
        assert "the launch gives" in str(caught.value)
    check(run)
