"""The numpy references: independent of the compiler, one for each operator, and right where the answer is known."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import numpy as np
import pytest

import bertc.plugins
from bertc.ops.registry import BODIES
from bertc.plugins import attention, bias_gelu, conv1d_gelu, embeddings, score_mask, sdpa, skip_layernorm, skip_rmsnorm

FILES = sorted(p for p in Path(bertc.plugins.__path__[0]).glob("*.py") if p.stem != "__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_reference_imports_numpy_and_its_neighbours_only(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert {alias.name for alias in node.names} <= {"numpy", "math"}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 1 or node.module in ("__future__", "collections.abc")


def test_every_operator_has_a_reference_that_names_it() -> None:
    named = set()
    for path in FILES:
        module = importlib.import_module(f"bertc.plugins.{path.stem}")
        found = re.match(r"(Fused\w+): ", module.__doc__ or "")
        assert found and callable(module.reference)
        named.add(found[1])
    assert named == set(BODIES)


def test_gelu_at_known_points() -> None:
    x = np.array([[0.0, 1.0, -1.0, 40.0, -40.0]])
    zero = np.zeros(5)
    assert bias_gelu.reference(x, zero) == pytest.approx(np.array([[0, 0.8413447460685429, -0.15865525393145707, 40, 0]]))
    assert bias_gelu.reference(x, zero, "tanh") == pytest.approx(np.array([[0, 0.8411919906, -0.1588080094, 40, 0]]))
    assert bias_gelu.reference(x, zero, "quick") == pytest.approx(np.array([[0, 0.8457957660, -0.1542042340, 40, 0]]))
    with pytest.raises(ValueError, match="known: erf, tanh, quick"):
        bias_gelu.reference(x, zero, "relu")


def test_norms_at_known_points() -> None:
    x, skip, one = np.array([[1.0, 2.0]]), np.array([[2.0, 5.0]]), np.ones(2)
    y, total = skip_layernorm.reference(x, skip, None, one, one, epsilon=0.0)
    assert total.tolist() == [[3, 7]] and y.tolist() == [[0, 2]]
    y, total = skip_rmsnorm.reference(x, skip, np.array([0.0, -3.0]), one, epsilon=0.0)
    assert total.tolist() == [[3, 4]] and y == pytest.approx(np.array([[3, 4]]) / np.sqrt(12.5))


def test_one_place_attends_to_itself_and_a_dead_row_to_all() -> None:
    q, v = np.ones((2, 1, 3, 4), np.float32), np.arange(24, dtype=np.float32).reshape(2, 1, 3, 4)
    mask = score_mask.reference(np.array([[0, 1, 0], [0, 0, 0]]), -3.4028234663852886e38)
    found = sdpa.reference(q, np.ones((2, 1, 4, 3), np.float32), v, mask, 0.5)
    assert np.array_equal(found[0, 0], v[0, 0, [1, 1, 1]])
    assert found[1, 0] == pytest.approx(np.repeat(v[1, 0].mean(0, keepdims=True), 3, 0))


def test_attention_with_identity_weights_is_sdpa_by_head() -> None:
    x = np.random.default_rng(0).standard_normal((2, 5, 6)).astype(np.float32)
    eye = np.eye(6, dtype=np.float32)
    found = attention.reference(x, None, np.concatenate([eye] * 3, 1), None, eye, num_heads=3, scale=0.7)
    heads = x.reshape(2, 5, 3, 2).transpose(0, 2, 1, 3)
    wanted = sdpa.reference(heads, heads.swapaxes(2, 3), heads, None, 0.7).transpose(0, 2, 1, 3).reshape(2, 5, 6)
    assert found == pytest.approx(wanted, abs=1e-6)


def test_convolution_at_known_points() -> None:
    x = np.array([[[1.0, 2.0, 3.0, 4.0]]])
    w = np.array([[[1.0, 10.0]]])
    assert conv1d_gelu.conv1d(x, w, None, 1, [0, 0], 1, 1).tolist() == [[[21, 32, 43]]]
    assert conv1d_gelu.conv1d(x, w, np.array([1.0]), 2, [1, 0], 1, 1).tolist() == [[[11, 33]]]
    assert conv1d_gelu.conv1d(x, w, None, 1, [0, 0], 2, 1).tolist() == [[[31, 42]]]
    with pytest.raises(ValueError, match="known: none, group and layer"):
        conv1d_gelu.reference(x, w, norm="batch")


def test_embeddings_count_positions_and_read_type_zero() -> None:
    ids, word = np.array([[1, 0]]), np.array([[1.0, 5.0], [2.0, 4.0]])
    table = np.array([[1.0, 0.0], [0.0, 9.0], [7.0, 7.0]])
    one = np.ones(2)
    given = embeddings.reference(ids, np.array([[0, 1]]), np.array([[0, 0]]), word, table, word, one, epsilon=1e-3)
    absent = embeddings.reference(ids, None, None, word, table, word, one, epsilon=1e-3)
    assert np.array_equal(given, absent)
