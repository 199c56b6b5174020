"""Runs an .onnx file as it is: the truth about it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..core import BuildFailed, Feeds, Outputs, SourceError
from ..graph import load_graph
from .inference import infer_types

MISSING_KERNEL = re.compile(r"NOT_IMPLEMENTED.*?implementation for (\w+)")
EXTERNAL = "external tensors"  # "Cannot parse data from external tensors": an operator's shape or axes are stored outside
TYPES = {"tensor(int64)": "int64", "tensor(float)": "float32"}  # that ids and halves are cast to where the session wants them


class FileRunner:
    """ONNX Runtime's CPU provider on a file, all optimisations off. The session is made on first use.

    Where ONNX Runtime has no kernel of an operator in float16 or bfloat16, the graph runs in float32 and every result is rounded
    to its type; small tensors that lie outside the file, which it may not read, are read for it. `note` says so.
    Raises SourceError for a file that does not load either way.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._session: Any = None
        self._weights: dict[str, Any] = {}
        self._note = ""

    def __call__(self, feeds: Feeds) -> Outputs:
        session = self.open()
        wanted = {entry.name: TYPES.get(entry.type) for entry in session.get_inputs() if entry.name not in self._weights}
        # Integer ids may come as int32 where the file wants int64.
        cast = {name: feeds[name].astype(kind, copy=False) if kind else feeds[name] for name, kind in wanted.items()}
        names = [entry.name for entry in session.get_outputs()]
        return dict(zip(names, session.run(names, {**self._weights, **cast}), strict=True))

    @property
    def note(self) -> str:
        """What is not as ONNX Runtime would run the file; "" where nothing is. Opens the file."""
        self.open()
        return self._note

    def open(self) -> Any:
        """The session, which is made when it is first asked for."""
        from ..runtime import open_session, reference_options

        if self._session is None:
            try:
                self._session = open_session(self.path, reference_options())
            except BuildFailed as error:
                self._session = self._otherwise(error)
        return self._session

    def _otherwise(self, refused: BuildFailed) -> Any:
        """A session over the file's graph as bertc reads it, where that mends what ONNX Runtime refuses of the file."""
        from ..runtime import emulate_rounding, reference_session

        why = str(refused.__cause__).splitlines()[0]
        failed = SourceError(f"{self.path} does not load in ONNX Runtime: {why}")
        missing, graph = MISSING_KERNEL.search(why), load_graph(self.path)
        infer_types(graph)
        widened = emulate_rounding(graph) if missing else graph
        if (missing and widened is graph) or not (missing or EXTERNAL in why):
            raise failed from refused
        try:
            session, self._weights = reference_session(widened)
        except BuildFailed:
            raise failed from refused
        self._note = (
            f"ONNX Runtime's CPU has no {missing[1]} in the file's half precision: as the source it runs in float32, each result "
            "rounded to its type"
            if missing
            else "ONNX Runtime does not read shapes from external data: they are handed to it"
        )
        return session
