"""bertc.classifier answers as transformers' text-classification pipeline over the checkpoint that was built."""

from __future__ import annotations

from typing import Any

import pytest
import served_models

import bertc
from bertc.core import DataError

CLOSE = 1e-5
PAIR = {"text": "the cat", "text_pair": "sat on a mat"}


@pytest.fixture(scope="module", params=["", "multi_label_classification", "regression"])
def both(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """(the pipeline of transformers, ours)."""
    transformers = pytest.importorskip("transformers")
    source, artifact = served_models.classifier(request.param)
    options: dict[str, Any] = {"device": "cpu", "truncation": True}
    return transformers.pipeline("text-classification", model=str(source), **options), bertc.classifier(artifact)


def same(ours: Any, theirs: Any) -> None:
    assert [each["label"] for each in ours] == [each["label"] for each in theirs]
    assert all(abs(a["score"] - b["score"]) < CLOSE for a, b in zip(ours, theirs, strict=True))


def test_as_the_pipeline(both: tuple[Any, Any]) -> None:
    pipeline, ours = both
    texts = [*served_models.texts(12), "the cat " * 60]
    same(ours("the cat sat"), pipeline("the cat sat"))
    same([each[0] for each in ours(texts)], pipeline(texts))
    same([each[0] for each in ours(iter(texts), batch_size=5)], pipeline(texts))
    for a, b in zip(ours(texts, top_k=None), pipeline(texts, top_k=None), strict=True):
        same(a, b)
    same(ours("a mat", top_k=2), pipeline("a mat", top_k=2))
    same(ours(PAIR, top_k=3), pipeline(PAIR, top_k=3))
    for function in ("softmax", "sigmoid", "none"):
        same(ours("a dog", top_k=3, function_to_apply=function), pipeline("a dog", top_k=3, function_to_apply=function))


def test_what_is_no_text() -> None:
    classifier = bertc.classifier(served_models.classifier("")[1])
    for wrong in (3, None, [3], [], {"text_pair": "alone"}, {"text": "a", "other": "b"}, [["a", "b"]]):
        with pytest.raises((DataError, TypeError)):
            classifier(wrong)
    for options in ({"top_k": 0}, {"batch_size": 0}, {"function_to_apply": "tanh"}):
        with pytest.raises(DataError):
            classifier("the cat", **options)


def test_an_embedding_is_no_classifier() -> None:
    with pytest.raises(DataError, match="logits"):
        bertc.classifier(served_models.embedder()[1])
