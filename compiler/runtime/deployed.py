"""A graph on ONNX Runtime's CPU provider with its optimisations on, as an application runs it."""

from __future__ import annotations

import onnx_ir as ir

from ..core import Feeds, Outputs
from ..graph import Graph
from .runner import Runner
from .session import import_onnxruntime, open_session


class DeployedRunner(Runner):
    """One session over the whole graph, weights inside. Raises Missing without onnxruntime, BuildFailed when it refuses."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.inputs, graph.outputs)
        options = import_onnxruntime().SessionOptions()
        options.log_severity_level = 4  # what it refuses is raised, and said once
        copy = graph.copy().model
        ir.external_data.load_to_model(copy)
        self._session = open_session(ir.to_proto(copy).SerializeToString(), options)

    def _run(self, feeds: Feeds) -> Outputs:
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))
