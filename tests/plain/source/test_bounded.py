"""A config or a header that asks for memory which the files beside it do not justify is refused before any is taken."""

from __future__ import annotations

import json
import shutil
import tracemalloc

import hypothesis.strategies as st
import models
import pytest
from hypothesis import HealthCheck, given, settings

from bertc.core import SourceError
from bertc.source.checkpoint import read_checkpoint
from bertc.source.opening import open_source
from bertc.source.weight_files import MAX_HEADER, elements, longest, safetensors_header, tensor_count

WEIGHTS = "model.safetensors"
SIZES = {
    "features": ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings", "num_labels"),
    "token-classification": ("n_layers", "dim", "hidden_dim", "n_heads"),
    "ctc": ("conv_kernel", "conv_stride", "conv_dim", "num_conv_pos_embeddings", "num_feat_extract_layers"),
}
PARTS = [(name, key) for name, keys in SIZES.items() for key in keys]


def copied(tmp_path, name="features"):
    return shutil.copytree(models.one_layer(name), tmp_path / "model")


def edit(path, **changes):
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | changes))


@pytest.mark.parametrize(("name", "key"), PARTS)
@pytest.mark.parametrize("huge", [10**6, 10**7, 10**9, 10**30])
def test_a_size_that_the_weights_do_not_have(name, key, huge, tmp_path):
    from bertc.source.torch_export import load_module

    folder = copied(tmp_path, name)
    old = json.loads((folder / "config.json").read_text()).get(key)
    edit(folder / "config.json", **{key: [huge] * len(old) if isinstance(old, list) else huge})
    tracemalloc.start()
    try:
        with pytest.raises(SourceError, match=r"config\.json"):
            load_module(read_checkpoint(folder), name)
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    finally:
        tracemalloc.stop()


def test_what_is_built_is_counted_whatever_made_it(tmp_path):
    """The first table that is too large is named: nothing behind it is made."""
    folder = copied(tmp_path)
    edit(folder / "config.json", type_vocab_size=10**9)
    with pytest.raises(SourceError, match=r"config\.json describes a model.*\[1000000000, 32\].*the weights hold"):
        open_source(str(folder))


@pytest.mark.parametrize(("key", "value"), [("num_hidden_layers", -1), ("num_attention_heads", -3)])
def test_less_than_none(key, value, tmp_path):
    folder = copied(tmp_path)
    edit(folder / "config.json", **{key: value})
    with pytest.raises(SourceError, match=f"{key} is {value}, less than none"):
        read_checkpoint(folder)


def test_as_many_layers_as_there_are_tensors(tmp_path):
    """A shared layer (ALBERT) has few tensors: a hundred layers are taken in any case."""
    folder = copied(tmp_path)
    edit(folder / "config.json", num_hidden_layers=100)
    assert read_checkpoint(folder).config["num_hidden_layers"] == 100
    edit(folder / "config.json", num_hidden_layers=101, text_config={"num_hidden_layers": 12})
    with pytest.raises(SourceError, match="num_hidden_layers is 101, bertc takes up to 100; the weights have 23 tensors"):
        read_checkpoint(folder)
    edit(folder / "config.json", num_hidden_layers=1, text_config={"num_hidden_layers": 10**9})
    with pytest.raises(SourceError, match="num_hidden_layers is 1000000000"):
        read_checkpoint(folder)


def test_a_dense_layer_is_not_larger_than_its_file(tmp_path):
    path = tmp_path / "model"
    models.sentence_transformer(path, {"pooling_mode_mean_tokens": True}, ("Dense",), models.one_layer("features"))
    (config,) = path.glob("*_Dense/config.json")
    edit(config, in_features=10**6, out_features=10**6)
    with pytest.raises(SourceError, match=r"config\.json makes a Dense of 1000000000000 numbers; its weights hold \d+"):
        open_source(str(path))


# ---- headers of safetensors


def written(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(2, 3), offsets=(0, 24)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_a_header_is_held_against_its_file(tmp_path):
    path = tmp_path / WEIGHTS
    assert list(safetensors_header(written(path, {"w": entry(), "__metadata__": {"format": "pt"}}, bytes(24)))) == ["w"]
    assert (elements([path]), tensor_count([path]), longest([path])) == (6, 1, 3)
    wrong = {
        "outside the file": ({"w": entry(offsets=(0, 2**40))}, "should have"),
        "behind its end": ({"w": entry(), "v": entry(offsets=(24, 0))}, "takes 24 bytes, its header gives it -24"),
        "a shape of terabytes": ({"w": entry(shape=(10**6, 10**6))}, "takes 4000000000000 bytes, its header gives it 24"),
        "a size below zero": ({"w": entry(shape=(-2, -3))}, "shape"),
        "a size that overflows": ({"w": entry(shape=(10**400,))}, "shape"),
        "an unknown type": ({"w": entry(dtype="F31")}, "'F31'"),
        "one offset": ({"w": {**entry(), "data_offsets": [24]}}, "data_offsets"),
        "a text": ({"w": "text"}, "an object"),
        "a list": ([entry()], "an object"),
        "a tensor twice": (b'{"w": 1, "w": 2}', "twice"),
        "nesting": (b'{"w":' * 100_000, "header"),
    }
    for what, (header, said) in wrong.items():
        with pytest.raises(SourceError, match=said) as caught:
            safetensors_header(written(path, header, bytes(24)))
        assert WEIGHTS in str(caught.value), what


def test_a_long_header_is_not_read(tmp_path):
    path = written(tmp_path / WEIGHTS, b"{}", length=2**63)
    with pytest.raises(SourceError, match="truncated or no safetensors file"):
        safetensors_header(path)
    with path.open("r+b") as file:
        file.write((MAX_HEADER + 1).to_bytes(8, "little"))
        file.truncate(2 * MAX_HEADER)  # sparse: no bytes on the disk
    with pytest.raises(SourceError, match=f"header of {MAX_HEADER + 1} bytes; bertc reads up to"):
        safetensors_header(path)


@settings(max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=200), st.integers(0, 250))
def test_any_bytes(tmp_path, data, length):
    """What is read holds as many bytes as its tensors take; everything else is refused by name."""
    path = tmp_path / WEIGHTS
    path.write_bytes(length.to_bytes(8, "little") + data)
    found, said = None, ""
    try:
        found = safetensors_header(path)
    except SourceError as error:
        said = str(error)
    assert WEIGHTS in said if found is None else found == {} and len(data) == length
