"""bertc.sentence_transformers: SentenceTransformer over an artifact gives what the folder that it was built from gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import served_models
import tiny

import bertc
from bertc.core import DataError

sentence_transformers = pytest.importorskip("sentence_transformers")
CLOSE = 2e-6  # of vectors of unit length, float32


@pytest.fixture(scope="module")
def original() -> Any:
    return sentence_transformers.SentenceTransformer(str(served_models.embedder()[0]), device="cpu")


@pytest.fixture(scope="module")
def module() -> Any:
    return bertc.sentence_transformers(served_models.embedder()[1])


@pytest.fixture(scope="module")
def ours(module: Any) -> Any:
    return sentence_transformers.SentenceTransformer(modules=[module], device="cpu")


def distance(one: Any, other: Any) -> float:
    one, other = np.asarray(one), np.asarray(other)
    assert one.shape == other.shape and one.dtype == other.dtype
    return float(np.abs(one.astype(np.float64) - other).max())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_size": 1},
        {"batch_size": 7},
        {"prompt_name": "document"},
        {"prompt": "a big dog "},
        {"prompt": ""},
        {"truncate_dim": 5},
        {"truncate_dim": 5, "normalize_embeddings": True},
        {"convert_to_tensor": True},
        {"precision": "binary"},
    ],
    ids=str,
)
def test_encode_as_the_folder_does(original: Any, ours: Any, options: dict[str, Any]) -> None:
    texts = [*served_models.texts(30), "the cat " * 40, "one of no known words"]
    assert distance(ours.encode(texts, **options), original.encode(texts, **options)) < CLOSE


def test_one_text_queries_and_documents(original: Any, ours: Any) -> None:
    assert distance(ours.encode("the cat"), original.encode("the cat")) < CLOSE
    assert distance(ours.encode_query(["the cat"]), original.encode_query(["the cat"])) < CLOSE
    assert distance(ours.encode_document(["the cat"]), original.encode_document(["the cat"])) < CLOSE
    assert distance(ours.encode_query("a mat"), ours.encode_document("a mat")) > 1e-3, "the prompt matters"
    assert ours.encode([]).shape == original.encode([]).shape


def test_settings_come_from_the_folder_and_what_is_given_stays(original: Any, ours: Any, module: Any) -> None:
    for name in ("prompts", "default_prompt_name", "similarity_fn_name", "max_seq_length", "truncate_dim"):
        assert getattr(ours, name) == getattr(original, name), name
    assert ours.get_embedding_dimension() == original.get_embedding_dimension() == 32
    given = {"prompts": {"query": "big "}, "default_prompt_name": "document", "similarity_fn_name": "cosine", "truncate_dim": 4}
    other = sentence_transformers.SentenceTransformer(modules=[module], device="cpu", **given)
    assert other.prompts["query"] == "big " and other.default_prompt_name == "document"
    assert other.similarity_fn_name == "cosine" and other.encode("a mat").shape == (4,)
    vectors = ours.encode(["the cat", "a dog", "a mat"])
    assert distance(ours.similarity(vectors, vectors), original.similarity(vectors, vectors)) < 1e-5


def test_batches_stay_within_the_profile(original: Any, module: Any) -> None:
    from bertc.core import Range

    before = module.runner.profiles
    module.runner.profiles = ({"batch": Range(1, 2, 4), "length": Range(1, 8, 40)},)
    try:
        made = sentence_transformers.SentenceTransformer(modules=[module], device="cpu").encode(
            served_models.texts(11), batch_size=11
        )
    finally:
        module.runner.profiles = before
    assert distance(made, original.encode(served_models.texts(11))) < CLOSE


def test_saved_and_loaded(original: Any, ours: Any, tmp_path: Path) -> None:
    ours.save(str(tmp_path / "saved"))
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "saved"), device="cpu", trust_remote_code=True)
    assert distance(again.encode(["the cat"]), original.encode(["the cat"])) < CLOSE
    assert again.prompts == original.prompts


def test_what_would_be_ignored_is_refused(ours: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="processing_kwargs"):
        ours.encode(["the cat"], processing_kwargs={"text": {"max_length": 3}})
    bertc.build(tiny.encoder(tmp_path / "m.onnx", tokenizer=True), tmp_path / "out", targets=["onnxruntime"])
    with pytest.raises(DataError, match="sentence_embedding"):
        bertc.sentence_transformers(tmp_path / "out")
