"""A source that computes in low precision, as it was given: its float32 graph is held against it once, at its type's tolerance.

From then on the float32 graph is the truth: what bertc does to it is judged as for any float32 source.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ..core import BuildFailed, Feeds, Outputs, SourceError
from ..graph import Graph, load_graph
from ..runtime import DeployedRunner, ReferenceRunner, Runner, emulate_rounding, open_session, reference_options
from .file_runner import FileRunner
from .quantised_activations import describe_quantised, quantised_operators
from .types import Given
from .widening import NAMES, HalfParts, find_half

MODES = {ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}
INT8_ACCURACY = 4  # accuracy_level of MatMulNBits: the kernel rounds activations to int8
FED = {"tensor(float16)": np.float16, "tensor(int64)": np.int64, "tensor(float)": np.float32}


def runner_of(graph: Graph) -> Runner:
    """What runs a graph for the truth: the reference, or for quantised activations ONNX Runtime as it is deployed.

    Its optimiser sums floats in another order, and a number at the edge of two integers falls to the other side.
    """
    return DeployedRunner(graph) if quantised_operators(graph.model) else ReferenceRunner(graph)


def lazy_runner(graph: Graph) -> Callable[[Feeds], Outputs]:
    """The function of `runner_of`, whose session is made on first use. Feeds may be of narrower integers."""
    made: list[Runner] = []

    def run(feeds: Feeds) -> Outputs:
        if not made:
            made.append(runner_of(graph))
        return made[0].run({spec.name: feeds[spec.name].astype(spec.dtype, copy=False) for spec in made[0].inputs})

    return run


def find_given(path: Path) -> Given | None:
    """How an .onnx file computes, where that is not in float32; None where it is, or where activations are quantised."""
    graph = load_graph(path, mapped=True)
    inner = graph.model.graph
    for value in [value for value in inner.inputs if value.is_initializer()]:
        inner.inputs.remove(value)
    if quantised_operators(graph.model):
        return None
    half = find_half(graph.model)
    if half.computed_in is not None:
        given = given_in_half(half, *_runner(path, half.computed_in))
        assert given is not None
        return dataclasses.replace(given, rounded=_rounded(path))
    blocks = [n for n in inner.all_nodes() if n.op_type == "MatMulNBits"]
    if any(node.attributes.get_int("accuracy_level", 0) == INT8_ACCURACY for node in blocks):
        why = "its MatMulNBits (accuracy_level 4) rounds activations to int8, the graph in float32 does not"
        return Given(_session_runner(path), "int8", why, "ONNX Runtime on the file")
    return None


def truth_of_file(path: Path, graph: Graph, given: Given | None) -> tuple[Callable[[Feeds], Outputs], list[str]]:
    """(what answers for an .onnx file whose float32 form is `graph`, notes): the file itself where it computes in float32; its
    float32 graph where it computes in less; as it is deployed, where its activations are quantised."""
    if given is not None or describe_quantised(graph):
        return lazy_runner(graph), []
    run = FileRunner(path)
    return run, [run.note] if run.note else []


def given_in_half(half: HalfParts, run: Callable[[Feeds], Outputs], how: str) -> Given | None:
    """A source that computes in half precision; None where it does not."""
    if half.computed_in is None:
        return None
    why = f"{NAMES[half.computed_in]} rounds between its nodes, the graph in float32 does not"
    return Given(run, MODES[half.computed_in], why, how)


def _runner(path: Path, half: ir.DataType) -> tuple[Callable[[Feeds], Outputs], str]:
    """ONNX Runtime on the file; where it lacks a kernel (most of bfloat16), its arithmetic emulated."""
    graph = load_graph(path)
    ported = any(value.dtype == ir.DataType.BFLOAT16 for value in graph.model.graph.inputs)  # numpy has no bfloat16 to feed
    try:
        if not ported:
            run = _session_runner(path)
            return run, f"ONNX Runtime on the file, whose CPU kernels compute {NAMES[half]} in float32 between casts"
    except SourceError:
        pass  # said by `how`, below
    from ..graph import infer_shapes

    infer_shapes(graph.model)
    try:
        emulated = _cast_for(ReferenceRunner(emulate_rounding(graph)))
    except BuildFailed as error:
        raise SourceError(f"{path} does not load in ONNX Runtime: {str(error.__cause__).splitlines()[0]}") from error
    return emulated, f"the file with {NAMES[half]} rounding emulated: ONNX Runtime has no kernel for it"


def _rounded(path: Path) -> Callable[[Feeds], Outputs] | None:
    """The file with each result rounded, as a GPU rounds it; None where a type cannot be inferred, or the CPU cannot run it."""
    from ..graph import infer_shapes

    graph = load_graph(path)
    infer_shapes(graph.model)
    if any(value.dtype is None for node in graph.model.graph.all_nodes() for value in node.outputs if value.uses()):
        return None
    try:
        return _cast_for(ReferenceRunner(emulate_rounding(graph)))
    except BuildFailed:
        return None


def _cast_for(runner: Runner) -> Callable[[Feeds], Outputs]:
    def run(feeds: Feeds) -> Outputs:
        return runner.run({spec.name: feeds[spec.name].astype(spec.dtype, copy=False) for spec in runner.inputs})

    return run


def _session_runner(path: Path) -> Callable[[Feeds], Outputs]:
    """The file as it is, half inputs rounded, half outputs as float32. Raises SourceError where ONNX Runtime refuses it."""
    try:
        session: Any = open_session(path, reference_options())
    except BuildFailed as error:
        raise SourceError(f"{path} does not load in ONNX Runtime: {str(error.__cause__).splitlines()[0]}") from error
    wanted = {entry.name: FED.get(entry.type) for entry in session.get_inputs()}
    names = [entry.name for entry in session.get_outputs()]

    def run(feeds: Feeds) -> Outputs:
        cast = {name: feeds[name].astype(kind) if kind else feeds[name] for name, kind in wanted.items()}
        found = dict(zip(names, session.run(names, cast), strict=True))
        return {name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in found.items()}

    return run
