"""Modules as people have them: wrapped, open in their parameters, with nests of outputs, recurrent, without named dims."""

from __future__ import annotations

import textwrap

import models
import numpy as np
import pytest

from bertc.core.errors import SourceError
from bertc.source import open_source
from bertc.verification import check_export

COMMON = """
import dataclasses
import torch
from torch import nn
from bertc import FactoryModel
torch.manual_seed(0)
IDS = torch.arange(10, 32).reshape(2, 11)
ONE = torch.ones(2, 11, dtype=torch.int64)
DIMS = dict.fromkeys(("ids", "mask"), ("batch", "length"))

class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(40, 8), nn.Linear(8, 8)
    def states(self, ids, mask):
        return torch.tanh(self.out(self.words(ids))) * mask.unsqueeze(-1)
    def forward(self, ids, mask):
        return self.states(ids, mask)

def model(module, dims=DIMS):
    return FactoryModel(module.eval(), {"ids": IDS, "mask": ONE}, dims, limits={"length": (1, 40)} if dims is DIMS else None)
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def make(text):
        name = f"zoo_{tmp_path.name}".replace("-", "_")
        (tmp_path / f"{name}.py").write_text(COMMON + textwrap.dedent(text))
        return f"{name}:make"

    return make


def feeds(batch=3, length=7):
    rng = np.random.default_rng(1)
    mask = (np.arange(length) < np.array([[length], [2], [4]])[:batch]).astype(np.int64)
    return {"ids": rng.integers(0, 40, (batch, length)), "mask": mask}


def exported(reference, given=None):
    """The source, whose graph is the module at sizes that nobody traced."""
    source = open_source(reference)
    given = given or feeds()
    wanted, got = source.run(given), models.run_graph(source.graph, given)
    assert list(wanted) == [spec.name for spec in source.graph.outputs]
    assert all(models.relative_error(got[name], wanted[name]) < 1e-5 for name in wanted)
    return source


WRAPPED = {
    "torch.compile": "torch.compile(Base())",
    "DataParallel": "nn.DataParallel(Base())",
    "DataParallel and torch.compile": "nn.DataParallel(torch.compile(Base()))",
    "AveragedModel": "torch.optim.swa_utils.AveragedModel(Base())",
}


@pytest.mark.parametrize("kind", list(WRAPPED))
def test_a_wrapper_is_taken_off_with_a_note(write, kind):
    source = exported(write(f"def make(): return model({WRAPPED[kind]})"))
    for each in kind.split(" and "):
        assert any(note.startswith(f"{each} taken off the model") for note in source.notes)


def test_a_wrapper_inside_of_a_module_is_named_by_its_place(write):
    source = exported(write("""
        class Outer(Base):
            def __init__(self):
                super().__init__()
                self.out = nn.DataParallel(nn.Sequential(torch.compile(nn.Linear(8, 8))))
        def make(): return model(Outer())
    """))  # fmt: skip
    assert any("DataParallel taken off out:" in note for note in source.notes)
    assert any("torch.compile taken off out.0:" in note for note in source.notes)


def test_torchscript_is_refused_with_what_to_do(write):
    reference = write("def make(): return model(torch.jit.trace(Base().eval(), (IDS, ONE), check_trace=False))")
    with pytest.raises(SourceError, match=r"TorchScript.*nn\.Module that it was made of.*dynamo=False"):
        open_source(reference)


FORWARDS = {
    "any, by name": "*args, **kwargs): return self.inner(*args, **kwargs)",
    "any names": "**kwargs): return self.inner(**kwargs)",
    "any, by position": "*args, **kwargs): return self.other(*args, **kwargs)",
    "one named, the rest any": "ids, *rest): return self.inner(ids, *rest)",
    "one named, other names": "ids, **rest): return self.inner(ids, **rest)",
}


@pytest.mark.parametrize("how", list(FORWARDS))
def test_an_open_forward_is_called_as_what_it_calls(write, how):
    exported(write(f"""
        class Other(Base):
            def forward(self, a, b): return self.states(a, b)
        class Outer(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner, self.other = Base(), Other()
            def forward(self, {FORWARDS[how]}
        def make(): return model(Outer())
    """))  # fmt: skip


NESTS = {
    "a dict of dicts": ('{"a": {"x": h, "y": h[:, 0]}, "b": (h.sum(1), None)}', ["a_x", "a_y", "b_0"]),
    "a tuple of lists": ("h, [h[:, 0], (h.sum(1),)]", ["output_0", "output_1_0", "output_1_1_0"]),
    "a dataclass": ("Out(h)", ["states"]),
}


@pytest.mark.parametrize("kind", list(NESTS))
def test_a_nest_of_outputs_is_flattened_by_its_keys(write, kind):
    code, names = NESTS[kind]
    source = exported(write(f"""
        @dataclasses.dataclass
        class Out:
            states: torch.Tensor
            loss: object = None
        class Nested(Base):
            def forward(self, ids, mask):
                h = self.states(ids, mask)
                return {code}
        def make(): return model(Nested())
    """))  # fmt: skip
    assert [spec.name for spec in source.graph.outputs] == names
    assert any("None are left out" in note for note in source.notes) == ("None" in code or kind == "a dataclass")


RECURRENT = {
    "lstm": "nn.LSTM(8, 6, num_layers=2, bidirectional=True, batch_first=True)",
    "gru": "nn.GRU(8, 6, num_layers=2, bias=False, batch_first=True)",
    "rnn": "nn.RNN(8, 6, nonlinearity='relu', bidirectional=True, batch_first=True)",
    "lstm, time first": "nn.LSTM(8, 6)",
}


@pytest.mark.parametrize("kind", list(RECURRENT))
def test_a_recurrent_module_is_one_operator_a_layer_at_every_length(write, kind):
    first = "transpose(0, 1)" if "first" in kind else "contiguous()"
    source = exported(write(f"""
        class Recurrent(Base):
            def __init__(self):
                super().__init__()
                self.rnn = {RECURRENT[kind]}
            def forward(self, ids, mask):
                y, last = self.rnn(self.states(ids, mask).{first})
                return y, last
        def make(): return model(Recurrent())
    """))  # fmt: skip
    counts = source.graph.op_counts()
    assert counts[kind[:4].strip(",").upper()] == (2 if "num_layers" in RECURRENT[kind] else 1)
    # The last states are [layers, batch, hidden]: the check knows which axis counts rows, dead ones included.
    check_export(source, (), lambda *_: None)


LOOP = """
    class Loop(Base):
        def forward(self, ids, mask):
            h = self.states(ids, mask)
            total = h[:, 0]
            for t in range(1, h.shape[1]):
                total = torch.tanh(total + h[:, t])
            return total
"""
BRANCH = """
    class Branch(Base):
        def forward(self, ids, mask):
            h = self.states(ids, mask)
            {}
"""


def test_a_loop_over_time_names_its_line_and_the_advice_works(write, tmp_path):
    with pytest.raises(SourceError, match=r"'length'.*fixed at 11.*for t in range") as caught:
        open_source(write(LOOP + "\n    def make(): return model(Loop())"))
    assert "dims {'ids': ('batch', 11)}" in str(caught.value)
    (tmp_path / "loop_followed.py").write_text(
        COMMON + textwrap.dedent(LOOP) + '\ndef make(): return model(Loop(), dict.fromkeys(("ids", "mask"), ("batch", 11)))'
    )
    exported("loop_followed:make", feeds(3, 11))


def test_a_branch_on_values_names_its_line_and_the_advice_works(write, tmp_path):
    code = "if mask.sum() == mask.numel(): return h.mean(1)\n            return h.sum(1)"
    with pytest.raises(SourceError, match=r"data-dependent.*torch\.where") as caught:
        open_source(write(BRANCH.format(code) + "\n    def make(): return model(Branch())"))
    assert "if mask.sum() == mask.numel()" in str(caught.value)
    code = "return torch.where(mask.sum() == mask.numel(), h.mean(1), h.sum(1))"
    followed = textwrap.dedent(BRANCH).format(code) + "\ndef make(): return model(Branch())"
    (tmp_path / "branch_followed.py").write_text(COMMON + followed)
    exported("branch_followed:make")


PAIRS = {
    "by name": ("{'ids': IDS, 'mask': ONE}", ("ids", "mask")),
    "in order, one row": ("(IDS[:1], ONE[:1])", ("ids", "mask")),
}


@pytest.mark.parametrize("kind", list(PAIRS))
def test_a_pair_of_module_and_examples_has_its_dims_found(write, kind):
    examples, names = PAIRS[kind]
    source = exported(write(f"""
        class Places(Base):
            def __init__(self):
                super().__init__()
                self.places = nn.Embedding(23, 8)
            def forward(self, ids, mask):
                return self.states(ids, mask) + self.places(torch.arange(ids.shape[1]))
        def make(): return Places().eval(), {examples}
    """))  # fmt: skip
    assert [str(s) for s in source.graph.inputs] == [f"{name}: int64[batch, length]" for name in names]
    assert (source.dims["length"].min, source.dims["length"].max) == (1, 23)
    assert any("names no dims" in note for note in source.notes)


def test_a_pair_with_two_towers_and_a_number_keeps_their_sizes_apart(write):
    source = open_source(write("""
        class Two(Base):
            def forward(self, q, q_mask, d, d_mask, scale):
                return self.states(q, q_mask).sum(1) @ self.states(d, d_mask).sum(1).T * scale
        def make():
            q, d = torch.ones(2, 5, dtype=torch.int64), torch.ones(3, 9, dtype=torch.int64)
            return Two().eval(), (q, q, d, d, torch.tensor(2.0))
    """))  # fmt: skip
    dims = {spec.name: spec.dims for spec in source.graph.inputs}
    assert dims["q"] == dims["q_mask"] and dims["d"] == dims["d_mask"] and not set(dims["q"]) & set(dims["d"])
    assert dims["scale"] == ()
    check_export(source, (), lambda *_: None)


def test_a_guard_that_torch_cannot_prove_is_no_limit(write):
    """A convolution's frames: torch.export refuses the range of samples in which they may be one."""
    source = open_source(write("""
        class Wave(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Conv1d(1, 8, 10, 5), nn.Conv1d(8, 8, 3, 2)
            def forward(self, wave):
                return self.b(self.a(wave.unsqueeze(1)).relu()).transpose(1, 2)
        def make(): return Wave().eval(), torch.randn(1, 1600)
    """))  # fmt: skip
    assert source.dims["samples"].min == 20
    check_export(source, (), lambda *_: None)


ATTENTIONS = {
    "a layer, batch first": ("nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)", "self.a(x, src_key_padding_mask=p)"),
    "a layer, time first": (
        "nn.TransformerEncoderLayer(8, 2, 16)",
        "self.a(x.transpose(0, 1), src_key_padding_mask=p).transpose(0, 1)",
    ),
    "attention of one head": (
        "nn.MultiheadAttention(8, 1, batch_first=True)",
        "self.a(x, x, x, key_padding_mask=p, need_weights=False)[0]",
    ),
    "attention with its weights": ("nn.MultiheadAttention(8, 2, batch_first=True)", "self.a(x, x, x, key_padding_mask=p)"),
}


@pytest.mark.parametrize("kind", list(ATTENTIONS))
def test_pytorchs_own_attention_is_exported_in_all_its_forms(write, kind):
    """Rows that attend to nothing are 0 in PyTorch's kernel, and must be finite in the graph."""
    made, call = ATTENTIONS[kind]
    source = open_source(write(f"""
        class Own(Base):
            def __init__(self):
                super().__init__()
                self.a = {made}
            def forward(self, ids, mask):
                x, p = self.words(ids), mask == 0
                return {call}
        def make(): return model(Own())
    """))  # fmt: skip
    check_export(source, (), lambda *_: None)
