"""A Python factory: a model of the user's own that is in no zoo, and every way in which one can be wrong."""

from __future__ import annotations

import textwrap

import models
import numpy as np
import pytest

from bertc.core.errors import SourceError
from bertc.source.opening import open_reference, open_source
from bertc.source.types import SourceOptions

STUDENT = """
import torch
from bertc import FactoryModel

class Student(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(50, 8)
        self.mix = torch.nn.Linear(8, 8)
    def forward(self, ids, mask, scale=None):
        x = torch.nn.functional.gelu(self.mix(self.words(ids))) * mask.unsqueeze(-1)
        return {BODY}

def inputs():
    ids = torch.arange(32).reshape(2, 16)
    return {"ids": ids, "mask": torch.ones(2, 16)}

DIMS = {"ids": ("batch", "length"), "mask": ("batch", "length")}

def make():
    return Student(), inputs(), DIMS

def limited():
    return FactoryModel(Student().eval(), inputs(), DIMS, ["both", "ids"], {"length": (2, 64)})
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    count = iter(range(100))

    def make(text, **replaced):
        for name, value in replaced.items():
            text = text.replace("{" + name + "}", value)
        # A fresh name each time: Python keeps modules.
        name = f"student_{tmp_path.name}_{next(count)}".replace("-", "_")
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        return name

    return make


def refused(reference, *words):
    with pytest.raises(SourceError) as caught:
        open_source(reference)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_two_inputs_with_one_example_stay_two(write):
    """torch.export makes one input of two that are the same tensor object."""
    text = STUDENT.replace("self.words(ids))) * mask.unsqueeze(-1)", "self.words(ids) + self.words(mask)))")
    name = write(text.replace('"mask": torch.ones(2, 16)', '"mask": ids'), BODY="x")
    source = open_source(f"{name}:make")
    ids, mask = np.array([[1, 2, 3]]), np.array([[4, 5, 6]])
    assert source.run is not None
    wanted = source.run({"ids": ids, "mask": mask})["output"]
    got = models.run_graph(source.graph, {"ids": ids, "mask": mask})["output"]
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_a_custom_model_is_exported_with_its_names(write):
    name = write(STUDENT, BODY='{"states": x, "total": x.sum(1)}')
    source = open_source(f"{name}:make", SourceOptions(ids="int32"))
    assert (source.kind, source.task, len(source.sha256)) == ("factory", "custom", 64)
    assert [str(s) for s in source.graph.inputs] == ["ids: int32[batch, length]", "mask: float32[batch, length]"]
    assert [str(s) for s in source.graph.outputs] == ["states: float32[batch, length, 8]", "total: float32[batch, 8]"]
    assert "evaluation mode" in source.notes[0]
    assert open_reference(f"{name}:make").sha256 == source.sha256
    for batch, length in ((1, 1), (3, 7), (2, 90)):
        rng = np.random.default_rng(0)
        feeds = {"ids": rng.integers(0, 50, (batch, length), np.int32), "mask": rng.random((batch, length), np.float32)}
        wanted, got = source.run(feeds), models.run_graph(source.graph, feeds)
        assert all(models.relative_error(got[key], wanted[key]) < 1e-5 for key in ("states", "total"))


def test_outputs_limits_and_an_output_named_like_an_input(write):
    name = write(STUDENT, BODY="(x.max(1).values, ids)").replace("'", "")
    refused(f"{name}:nosuch", "no function 'nosuch'", "limited")
    source = open_source(f"{name}:make")
    assert [s.name for s in source.graph.outputs] == ["output_0", "output_1"]
    assert source.dims["length"].max is None
    feeds = {"ids": np.ones((1, 3), np.int64), "mask": np.ones((1, 3), np.float32)}
    np.testing.assert_array_equal(models.run_graph(source.graph, feeds)["output_1"], feeds["ids"])
    refused(f"{name}:limited", "output 'ids'", "has the name of an input")


def test_a_forward_with_more_parameters_than_examples(write):
    text = STUDENT.replace("def forward(self, ids, mask, scale=None)", "def forward(self, ids, scale=None, *, mask=None)")
    source = open_source(f"{write(text, BODY='x')}:make")
    feeds = {"ids": np.ones((1, 3), np.int64), "mask": np.ones((1, 3), np.float32)}
    assert models.relative_error(models.run_graph(source.graph, feeds)["output"], source.run(feeds)["output"]) < 1e-5


SPECIALISED = {
    "an added constant": ("x + torch.arange(16).unsqueeze(-1)", ("'length'", "'ids'", "fixed at 16")),
    "a branch on length": ("x * 2 if ids.shape[1] > 10 else x", ("'length'", "'ids'", "does not take every size", "min=11")),
    "a number made of it": ("x * float(int(ids.shape[0]))", ("'batch'", "'ids'", "fixed at 2")),
    "a branch on data": ("x * 2 if ids.sum() > 3 else x", ("Student cannot be exported", "data-dependent")),
}


@pytest.mark.parametrize("what", list(SPECIALISED))
def test_a_model_that_does_not_take_every_size_is_refused(write, what, capfd):
    body, words = SPECIALISED[what]
    refused(f"{write(STUDENT, BODY=body)}:make", *words)
    assert capfd.readouterr().err == ""


IDENTITY = "def make(): return T.nn.Identity(), {'x': T.ones(2, 3)}, "
WRONG = {
    "def make(): return 3": ("returned a int", "FactoryModel"),
    "def make(): return 1, 2, 3": ("returned a int as module",),
    "def make(): raise ValueError('no weights at hand')": ("raised ValueError: no weights at hand", "line 2"),
    IDENTITY + "{'x': ('batch',)}": ("input 'x'", "shape [2, 3]"),
    IDENTITY + "{}": ("input 'x' has no dims",),
    IDENTITY + "{'y': ('b', 3)}": ("dims name input 'y'", "known: x"),
    "def make(): return T.nn.Identity(), {'x': 3}, {'x': ()}": ("example 'x' is a int",),
    "def make(): return T.nn.Identity(), {'x': T.ones(1, 3)}, {'x': ('batch', 3)}": ("batch=1", "2 or more"),
    IDENTITY + "{'x': ('batch', 4)}": ("dims say 4",),
    IDENTITY + "{'x': ('b', 3)}, None, {'c': (1, 2)}": ("limits name dimension 'c'",),
    IDENTITY + "{'x': ('b', 3)}, None, {'b': (3, 9)}": ("b=2, outside its limits 3..9",),
    IDENTITY + "{'x': ('b', 3)}, ['p', 'q']": ("returns 1 tensors, 2 output names",),
    "def make(): return T.nn.Bilinear(3, 3, 3), {'x': T.ones(2, 3)}, {'x': ('b', 3)}": ("fails on its own example",),
    "import nosuchthing": ("No module named 'nosuchthing'", "failed"),
    "def broken(:": ("SyntaxError",),
}


@pytest.mark.parametrize("text", list(WRONG))
def test_a_wrong_factory_is_explained(write, text):
    refused(f"{write('import torch as T' + chr(10) + text)}:make", *WRONG[text])


def test_a_module_that_is_not_there_names_the_nearest(write):
    name = write("x = 1")
    refused(f"{name[:-2]}:make", "no module", f"did you mean {name!r}")
    refused("nosuchpackage.inside:make", "no module 'nosuchpackage'")
    refused("student.py:make", "without .py")
    refused("torch.nnn:make", "no module 'torch.nnn'", "did you mean 'nn'")


def test_nan_weights_of_a_factory_are_named(write):
    refused(f"{write('import torch' + chr(10) + 'def make(): return torch.nn.Identity(), {}, {}')}:make", "non-empty")
    good = write(
        "import torch\ndef make():\n    m = torch.nn.Linear(2, 2); m.weight.data[0, 0] = float('nan')\n"
        "    return m, {'input': torch.ones(3, 2)}, {'input': ('batch', 2)}"
    )
    refused(f"{good}:make", "NaN or infinity in weight")


def test_two_names_for_one_size_are_refused(write):
    text = STUDENT.replace('"mask": ("batch", "length")', '"mask": ("batch", "width")')
    refused(f"{write(text, BODY='x')}:make", "'length'", "'width'")


def test_assets_travel_with_the_model_and_must_be_there(write, tmp_path):
    models.tokenizer(tmp_path)
    text = STUDENT + f"\ndef placed():\n    return FactoryModel(Student().eval(), inputs(), DIMS, assets={str(tmp_path)!r})\n"
    made = open_source(f"{write(text, BODY='x')}:placed")
    assert [file.name for file in made.assets] == ["tokenizer.json", "tokenizer_config.json"]
    refused(f"{write(text.replace(str(tmp_path), 'nowhere'), BODY='x')}:placed", "'nowhere' is not a folder")


TABLE = """
    import torch
    from bertc import FactoryModel

    class Table(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Parameter(torch.ones(1, 64, 4))

        def forward(self, x):
            return x + self.table[:, : x.shape[1]]

    def make():
        return FactoryModel(Table().eval(), {"x": torch.ones(2, 6, 4)}, {"x": ("batch", "length", 4)}{limits})
"""


def test_the_end_of_a_table_of_positions_is_told_as_limits_that_then_do(write):
    """In torch.export's words (`length = Dim('length', max=64)`) there is nothing to write into a factory."""
    with pytest.raises(SourceError, match="'length' of input 'x'") as caught:
        open_source(f"{write(TABLE, limits='')}:make")
    advice = str(caught.value).rpartition("say so: ")[2]
    source = open_source(f"{write(TABLE, limits=', ' + advice)}:make")
    assert (source.dims["length"].min, source.dims["length"].max) == (1, 64)
