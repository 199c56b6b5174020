"""Kernels in Triton's interpreter, in a process of its own: what triton reads when it is imported decides for good how they run.

`call` is what that process runs: arrays in, arrays out, so that a test and its oracle never see torch. Outputs are NaN (or -99)
before, so that what a kernel does not write is seen.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

TORCH = {
    "fp16": "float16",
    "bf16": "bfloat16",
    "fp32": "float32",
    "i32": "int32",
    "i64": "int64",
    "i8": "int8",
    "fp8e4nv": "float8_e4m3fn",
}


def _ready() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    assert "triton" not in sys.modules, "triton was imported before: kernels would be compiled"
    import torch

    torch.set_num_threads(1)
    _mend_dot()


def _mend_dot() -> None:
    """The interpreter keeps bfloat16 as 16 bits of an integer, and its tl.dot multiplies those: they are given as float32."""
    from triton import language as tl
    from triton.runtime import interpreter

    dot = interpreter.InterpreterBuilder.create_dot

    def mended(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        if a.dtype.scalar == tl.bfloat16:
            a, b = self.create_fp_ext(a, tl.float32), self.create_fp_ext(b, tl.float32)
        return dot(self, a, b, *rest)

    interpreter.InterpreterBuilder.create_dot = mended


def started() -> ProcessPoolExecutor:
    """One process, ready to interpret."""
    return ProcessPoolExecutor(1, get_context("spawn"), _ready)


def launch_of(file: str, name: str) -> Any:
    """A launch of a file in plugins/kernels, or of a changed copy of one."""
    if not file.endswith(".py"):
        module = importlib.import_module(f"bertc.plugins.kernels.{file}")
    else:
        spec = importlib.util.spec_from_file_location(f"bertc.plugins.kernels.changed_{abs(hash(file))}", file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    return next(launch for launch in module.LAUNCHES if launch.name == name)


def changed(file: str, folder: Path, *changes: tuple[str, str]) -> str:
    """A copy of a kernel's file with a fault in it, or in what it shares with others, which stands in the copy as well."""
    import bertc.plugins

    kernels = Path(bertc.plugins.__path__[0]) / "kernels"
    text, shared = ((kernels / f"{name}.py").read_text("utf-8") for name in (file, "_norm"))
    text = text.replace("from ._norm import normalised\n", shared[shared.index("@triton.jit") :])
    for before, after in changes:
        assert text.count(before) == 1, f"{before!r} stands {text.count(before)} times in {file}.py"
        text = text.replace(before, after)
    path = folder / f"{file}_{abs(hash(changes))}.py"
    path.write_text(text, "utf-8")
    return str(path)


def call(
    file: str,
    name: str,
    inputs: Mapping[str, np.ndarray],
    outputs: Mapping[str, tuple[tuple[int, ...], str]],
    attributes: Mapping[str, Any],
    variant: int | None = None,
    as_type: str | None = None,
    but: Sequence[str] = (),
) -> dict[str, Any]:
    """The outputs of a launch, and `moved`, the bytes that its programs read and wrote. Runs in the interpreter's process.

    Floats are given as `as_type`, those named in `but` as they are.
    """
    import torch

    launch = launch_of(file, name)
    given = {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in inputs.items()}
    if as_type:
        turned = {key for key, tensor in given.items() if tensor.is_floating_point()} - set(but)
        given |= {key: given[key].to(getattr(torch, TORCH[as_type])) for key in turned}
    made = {}
    for key, (shape, word) in outputs.items():
        kind = getattr(torch, TORCH[word])
        made[key] = torch.full(shape, float("nan") if kind.is_floating_point else -99, dtype=torch.float32).to(kind)
    with _watched([*given.values(), *made.values()]) as moved:
        launch.run(given, made, attributes, variant)
    return {
        key: tensor.float().numpy() if tensor.dtype.itemsize < 2 or tensor.dtype == torch.bfloat16 else tensor.numpy()
        for key, tensor in made.items()
    } | {"moved": sum(moved)}


@contextlib.contextmanager
def _watched(tensors: Sequence[Any]) -> Iterator[list[int]]:
    """What the interpreter loads and stores, in bytes, each within one of the tensors: outside of them it is an AssertionError,
    where else it would be some number, or the end of the process."""
    from triton.runtime import interpreter

    builder, moved = interpreter.InterpreterBuilder, []
    load, store = builder.create_masked_load, builder.create_masked_store
    starts = np.array([each.data_ptr() for each in tensors], np.uint64)
    ends = starts + np.array([each.nbytes for each in tensors], np.uint64)

    def note(ptrs: Any, mask: Any, what: str) -> None:
        size = max(ptrs.dtype.scalar.element_ty.primitive_bitwidth // 8, 1)
        at = np.broadcast_to(ptrs.data, mask.data.shape)[mask.data.astype(bool)].astype(np.uint64)
        inside = ((at[:, None] >= starts) & (at[:, None] + np.uint64(size) <= ends)).any(1)
        assert inside.all(), f"{np.count_nonzero(~inside)} of {inside.size} {what} are outside of every tensor"
        moved.append(at.size * size)

    def loaded(self: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
        note(ptrs, mask, "loads")
        return load(self, ptrs, mask, *rest)

    def stored(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        note(ptrs, mask, "stores")
        return store(self, ptrs, value, mask, *rest)

    builder.create_masked_load, builder.create_masked_store = loaded, stored
    try:
        yield moved
    except interpreter.InterpreterError as error:
        raise AssertionError(str(error)) from None
    finally:
        builder.create_masked_load, builder.create_masked_store = load, store
