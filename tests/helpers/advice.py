"""Advice of error messages, followed as it stands: what a message tells to type is taken out of it and typed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx import helper as oh

from bertc.cli import _main as cli
from bertc.cli._shared import recipe_of
from bertc.cli.export import export
from bertc.core import BertcError, Progress
from bertc.source import Reference, open_reference

VALUED = ("--adapter", "--task", "--target", "--against")  # options whose value stands behind them in a message
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


def opened(*words: object) -> Reference:
    """The source of `bertc export WORDS`, opened as that command opens it; the export itself, which takes seconds, is left out:
    what is refused here is refused when a source is opened."""
    params: dict[str, Any] = export.make_context("export", [*map(str, words), "-o", "nowhere"]).params
    options = {name: value for name, value in params.items() if name not in ("reference", "out", "force", "as_json")}
    recipe = recipe_of(params["reference"], Progress(), options)
    return open_reference(recipe.source, recipe.source_options)


def refusal(*words: object) -> str:
    """What `bertc export WORDS` says when it refuses."""
    with pytest.raises(BertcError) as caught:
        opened(*words)
    assert caught.value.exit_code in (2, 3)
    return str(caught.value)


def options_in(message: str) -> list[str]:
    """The options that a message names, with their values, as words to type."""
    words: list[str] = []
    for found in FLAG.finditer(message):
        value = re.match(r" ([^\s,;]+)", message[found.end() :])
        words += [found[0], value[1]] if found[0] in VALUED and value else [found[0]]
    return words


def command(words: Sequence[object]) -> int:
    return cli.run([str(word) for word in words])


def answers(reference: Reference, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    """What a source computes: finite, or the advice did not work."""
    ids = np.random.default_rng(0).integers(5, 15, (2, 7))
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    found = dict(reference.run({**given, **feeds}))
    assert found and all(np.isfinite(array).all() for array in found.values())
    return found


# ---- .onnx files -----------------------------------------------------------------------------------------------------


def linear(path: Path, opset: int = 20, external: bool = False, domain: str = "", op: str = "MatMul") -> Path:
    """y = x w, with its weight in the file or beside it."""
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    ends = [oh.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", 8)) for name in ("x", "y")]
    node = oh.make_node(op, ["x", "w"], ["y"], domain=domain)
    graph = oh.make_graph([node], "g", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    imports = [oh.make_opsetid("", opset)] + ([oh.make_opsetid(domain, 1)] if domain else [])
    model = oh.make_model(graph, opset_imports=imports, ir_version=8)
    kind = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0} if external else {}
    onnx.save(model, path, **kind)
    return path
