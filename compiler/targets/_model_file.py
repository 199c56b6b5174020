"""A graph that ONNX Runtime is given: the bytes whose hash was checked. No file is opened after the check."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core import ArtifactError, hash_file
from ._protocol import WEIGHTS, engine_file

EMBEDDED = 2**31  # bytes: of that size and more, ONNX Runtime takes no initializer out of a file in memory


@dataclasses.dataclass(frozen=True)
class ModelFile:
    """`beside`: the file of the weights, by the name that the graph has for it. `path` is what errors name.

    Without `data` it is a file that this very process has just written, which has no hash yet: it is opened by its path.
    """

    path: Path
    data: bytes | None = None
    beside: Mapping[str, bytes] = dataclasses.field(default_factory=dict)

    @property
    def given(self) -> bytes | str:
        """What a session is made of."""
        return str(self.path) if self.data is None else self.data

    @property
    def sha256(self) -> str:
        """Of the graph, without the file beside it."""
        return hash_file(self.path) if self.data is None else hashlib.sha256(self.data).hexdigest()

    def configure(self, options: Any) -> tuple[Any, ...]:
        """Hand the weights to the options of a session. What is returned has to live until the session is made.

        Raises ArtifactError where the graph keeps weights in any other file: a session would look for it on its own.
        """
        if self.data is None:
            return ()
        from ..graph import external_weights

        weights = external_weights(self.data, self.path)
        for name, weight in weights.items():
            if weight.file not in self.beside:
                raise ArtifactError(
                    f"{self.path}: {name} lies in {weight.file!r}, which is no file of this artifact; build it again"
                )
            if (end := weight.offset + weight.size) > (found := len(self.beside[weight.file])):
                raise ArtifactError(f"{self.path}: {weight.file} has {found} bytes, {name} ends at {end}; build it again")
        if not weights:
            return ()
        names, buffers = list(self.beside), list(self.beside.values())
        options.add_external_initializers_from_files_in_memory(names, buffers, [len(each) for each in buffers])
        large = {name: self._value(weight) for name, weight in weights.items() if weight.size >= EMBEDDED}
        if large:
            options.add_external_initializers(list(large), list(large.values()))
        return (buffers, large)

    def _value(self, weight: Any) -> Any:
        """An OrtValue over the bytes where they lie."""
        import numpy as np
        import onnx

        from ..runtime import import_onnxruntime

        value = import_onnxruntime().OrtValue
        dtype = onnx.helper.tensor_dtype_to_np_dtype(weight.dtype)
        found = np.frombuffer(self.beside[weight.file], np.uint8, weight.size, weight.offset)
        if dtype.isbuiltin == 1:
            return value.ortvalue_from_numpy(found.view(dtype).reshape(weight.shape))
        raw = found.view(f"u{dtype.itemsize}").reshape(weight.shape)  # bfloat16, float8: no types of numpy's own
        return value.ortvalue_from_numpy_with_onnx_type(raw, weight.dtype)


def read_model(directory: Path, manifest: Mapping[str, Any], name: str) -> ModelFile:
    """The graph of that name in an artifact, and its weights. Raises ArtifactError for other bytes than the manifest's."""
    from ..artifact import read_listed

    path = engine_file(directory, manifest, name)
    if "files" not in manifest:  # a build that verifies what it has made
        return ModelFile(path)
    beside = {WEIGHTS: read_listed(directory, manifest, WEIGHTS)} if WEIGHTS in manifest["files"] else {}
    return ModelFile(path, read_listed(directory, manifest, name), beside)
