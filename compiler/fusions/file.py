"""`bertc fuse`: an ONNX file in, a fused one out."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from ..core import ArtifactError
from ..graph import Graph, opset, save_graph
from .engine import Fused, fuse
from .proof import conversion, trial


def fuse_file(path: Path, out: Path, *, force: bool, prove: bool, rules_file: Path | None) -> tuple[Graph, Fused]:
    """Fuse one ONNX file into another, which carries the canonical bodies as functions. Returns (the graph read, what was done).

    The new file is loaded and run beside the old one before it is kept, whether matches are proven or not.
    Raises ArtifactError when `out` exists and `force` is not given, CheckFailed when the new file is not the old one.
    """
    from ..core import check_writable, disk_errors
    from ..ops import expansion as canonical
    from ..source import find_given, refuse_quantised, settle_sizes, truth_of_file
    from ..source import onnx_file as onnx_source

    check_writable(out, "-o")
    if out.exists() and not force:
        raise ArtifactError(f"the output {out} exists; --force replaces it, or choose another -o")
    graph, dims, notes = onnx_source.read_onnx_file(path)
    refuse_quantised(graph, "fusing")
    given = find_given(path)
    run, said = truth_of_file(path, graph, given)
    dims, sizes = settle_sizes(graph, dims, run)
    upgraded = opset.upgrade_opset(graph)
    checked = (conversion.check_conversion(graph, upgraded.graph, dims),) if prove and upgraded.notes else ()
    fused = fuse(upgraded.graph, dims, prove=prove, rules_file=rules_file)
    with disk_errors(out), tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        # The weights file of a large model is named in the file itself, so both are written under their own names and moved.
        names = save_graph(canonical.as_functions(fused.graph), Path(folder, out.name))
        ran = [trial.check_written(Path(folder, out.name), graph, dims, run)]
        if given is not None:
            beside = trial.check_written(Path(folder, out.name), graph, dims, given.run, half=True)
            ran.append(f"beside the file as given ({given.reason}): {beside}")
        for name in reversed(names):
            Path(folder, name).replace(out.with_name(name))
    told = (*notes, *said, *sizes, *upgraded.notes, *checked, *fused.notes, *ran)
    return graph, dataclasses.replace(fused, notes=told)
