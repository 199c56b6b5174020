"""TensorRT's official bindings without TensorRT: what they can be asked without its libraries."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def stand_in(folder: Path) -> dict[str, str]:
    """The TensorRT 11 bindings in a form that can be imported without TensorRT's 2 GB of libraries; for looking names up only.

    They are linked against three libraries, two of which TensorRT-RTX has under other names. It has no plugin library, so the
    one symbol wanted from there is renamed in a copy of the bindings.
    """
    found = importlib.util.find_spec("tensorrt_bindings")
    assert found is not None, "tensorrt_bindings is not installed: pip install --group test"
    assert found.origin is not None
    libraries = Path(importlib.util.find_spec("tensorrt_rtx_libs").origin).parent  # type: ignore[union-attr, arg-type]
    rtx, parser = libraries / "libtensorrt_rtx.so.1", libraries / "libtensorrt_onnxparser_rtx.so.1"
    links = {"libnvinfer.so.11": rtx, "libnvinfer_plugin.so.11": rtx, "libnvonnxparser.so.11": parser}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    package = folder / "tensorrt_bindings"
    package.mkdir()
    wanted, there = b"\0initLibNvInferPlugins\0", b"\0getPluginRegistry\0"
    original = Path(found.origin).parent
    for file in (each for each in original.rglob("*") if each.suffix in (".py", ".so")):
        copy = package / file.relative_to(original)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(file.read_bytes().replace(wanted, there.ljust(len(wanted), b"\0")))
    return {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)}
