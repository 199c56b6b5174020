"""The operators' kernels in Triton, for TensorRT's AOT plugins and for a launch on a GPU: `pip install 'bertc[kernels]'`.

`plugins/<op>.py` says what an operator means; the file of the same name here has its functions marked @triton.jit and LAUNCHES,
which Triton's interpreter, TensorRT's plugin (`_tensorrt.py`) and a launch on a GPU read alike. `_ptx.py` compiles, without a
GPU. Imports nothing of the compiler.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._launch import Launch


def launches() -> dict[str, Launch]:
    """Every launch by its name, out of the files of this folder. Imports triton."""
    files = (each.name for each in pkgutil.iter_modules(__path__) if not each.name.startswith("_"))
    modules = (importlib.import_module(f"{__name__}.{name}") for name in sorted(files))
    return {launch.name: launch for module in modules for launch in module.LAUNCHES}
