"""TensorRT's official bindings without TensorRT: what they can be asked without its libraries. No file of NVIDIA's is changed."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

# The one symbol that the bindings want of TensorRT's plugin library, which TensorRT-RTX has not. Names are only looked up here.
PLUGINS = "#include <stdbool.h>\nbool initLibNvInferPlugins(void *logger, const char *name) { return true; }\n"


def stand_in(folder: Path) -> dict[str, str]:
    """An environment in which the TensorRT 11 bindings are imported without TensorRT's 2 GB of libraries; to look names up only.

    They are linked against three libraries. Two of them TensorRT-RTX has under other names: links lead there. The third is made
    here, of the one function that is wanted from it.
    """
    if importlib.util.find_spec("tensorrt_bindings") is None:
        pytest.fail("tensorrt_bindings is not installed: pip install --group test")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("a C compiler makes the library that stands in for TensorRT's plugins: no cc or gcc here")
    libraries = Path(importlib.util.find_spec("tensorrt_rtx_libs").origin).parent  # type: ignore[union-attr, arg-type]
    rtx, parser = libraries / "libtensorrt_rtx.so.1", libraries / "libtensorrt_onnxparser_rtx.so.1"
    for name, target in {"libnvinfer.so.11": rtx, "libnvonnxparser.so.11": parser}.items():
        (folder / name).symlink_to(target)
    (folder / "plugins.c").write_text(PLUGINS)
    made = folder / "libnvinfer_plugin.so.11"
    command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{made.name}", "-o", str(made), str(folder / "plugins.c")]
    subprocess.run(command, check=True)
    return {"LD_LIBRARY_PATH": str(folder)}
