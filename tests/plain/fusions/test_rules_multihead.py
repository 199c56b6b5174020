"""nn.MultiheadAttention and nn.TransformerEncoderLayer fuse as any attention does, however they are called."""

from __future__ import annotations

import textwrap
from pathlib import Path

import models
import numpy as np
import pytest

from bertc import targets
from bertc.fusions import engine
from bertc.graph import Graph
from bertc.source import open_source

HEAD = """
import torch
from torch import nn
from bertc import FactoryModel
torch.manual_seed(0)
H = 16
T = lambda x: x.transpose(0, 1)
M = lambda heads=2, **given: nn.MultiheadAttention(H, heads, **given)

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.norm, self.other = nn.Embedding(40, H), nn.LayerNorm(H), nn.Embedding(40, 12)
        self.parts = nn.ModuleList(PARTS)
        for name, weight in self.named_parameters():
            if "bias" in name:
                nn.init.normal_(weight, std=0.3)
    def forward(self, ids, memory, mask, memory_mask):
        x, y = self.norm(self.words(ids)), self.other(memory)
        p, pm = mask == 0, memory_mask == 0
        low = torch.zeros_like(mask, dtype=x.dtype).masked_fill(p, float("-inf"))
        return CALLS

def make():
    ids, memory = torch.ones(2, 5, dtype=torch.int64), torch.ones(2, 7, dtype=torch.int64)
    given = {"ids": ids, "memory": memory, "mask": ids, "memory_mask": memory}
    dims = {name: ("batch", "memory" if "memory" in name else "length") for name in given}
    return FactoryModel(Model().eval(), given, dims)
"""
TABLES = {name: targets.lowerings(targets.parse_spec(name)) for name in ("onnxruntime", "tensorrt-rtx")}

# What is called, and how.
SELF = {
    "batch first": ("M(batch_first=True)", "{a}(x, x, x, key_padding_mask=p, need_weights=False)[0]"),
    "a float mask": ("M(batch_first=True)", "{a}(x, x, x, key_padding_mask=low, need_weights=False)[0]"),
    "weights returned and not used": ("M(batch_first=True)", "{a}(x, x, x, key_padding_mask=p)[0]"),
    "weights of each head": ("M(batch_first=True)", "{a}(x, x, x, key_padding_mask=p, average_attn_weights=False)[0]"),
    "length first": ("M()", "T({a}(T(x), T(x), T(x), key_padding_mask=p)[0])"),
    "length first, without weights": ("M()", "T({a}(T(x), T(x), T(x), key_padding_mask=p, need_weights=False)[0])"),
    "one head": ("M(1, batch_first=True)", "{a}(x, x, x, key_padding_mask=p, need_weights=False)[0]"),
    "one head, length first, weights": ("M(1)", "T({a}(T(x), T(x), T(x), key_padding_mask=p)[0])"),
    "no bias": ("M(batch_first=True, bias=False)", "{a}(x, x, x, key_padding_mask=p)[0]"),
    "three weights": ("M(batch_first=True, kdim=H, vdim=H)", "{a}(x, x, x, key_padding_mask=p, need_weights=False)[0]"),
    "a mask of pairs, too": (
        "M(batch_first=True)",
        "{a}(x, x, x, key_padding_mask=p, attn_mask=torch.zeros(x.shape[1], x.shape[1], dtype=torch.bool))[0]",
    ),
    "a layer": ("nn.TransformerEncoderLayer(H, 2, 32, batch_first=True)", "{a}(x, src_key_padding_mask=p)"),
    "a layer, length first": ("nn.TransformerEncoderLayer(H, 2, 32)", "T({a}(T(x), src_key_padding_mask=p))"),
    "an encoder": (
        "nn.TransformerEncoder(nn.TransformerEncoderLayer(H, 2, 32, batch_first=True, norm_first=True), 1, "
        "enable_nested_tensor=False)",
        "{a}(x, src_key_padding_mask=p)",
    ),
}
CROSS = {
    "another sequence": ("M(kdim=12, vdim=12, batch_first=True)", "{a}(x, y, y, key_padding_mask=pm, need_weights=False)[0]"),
    "another sequence, length first": ("M(kdim=12, vdim=12)", "T({a}(T(x), T(y), T(y), key_padding_mask=pm)[0])"),
    "a packed weight": (
        "M(batch_first=True)",
        "{a}(x, nn.functional.pad(y, (0, 4)), nn.functional.pad(y, (0, 4)), key_padding_mask=pm)[0]",
    ),
}


def fused(kinds: dict[str, tuple[str, str]], folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Graph, engine.Fused]:
    """One model with all of them, exported, and fused with a proof for each target."""
    parts = ", ".join(made for made, _ in kinds.values())
    calls = ", ".join(call.format(a=f"self.parts[{n}]") for n, (_, call) in enumerate(kinds.values()))
    name = f"multihead_{folder.name}".replace("-", "_")
    text = textwrap.dedent(HEAD).replace("PARTS", f"[{parts}]").replace("CALLS", f"({calls},)")
    (folder / f"{name}.py").write_text(text)
    monkeypatch.chdir(folder)
    source = open_source(f"{name}:make")
    return source.graph, engine.fuse(source.graph, source.dims, lowerings=TABLES)


def worst(graph: Graph, others: list[Graph]) -> float:
    """The largest relative error of any output, with rows that are padded left, right and in the middle."""
    rng = np.random.default_rng(0)
    mask = np.array([[1] * 6, [0, 0, 1, 1, 1, 1], [1, 0, 0, 1, 0, 0]], np.int64)
    given = {"ids": rng.integers(0, 40, (3, 6)), "memory": rng.integers(0, 40, (3, 9)), "mask": mask}
    given["memory_mask"] = np.concatenate([mask[:, ::-1], mask[:, :3]], axis=1)
    feeds = {spec.name: given[spec.name] for spec in graph.inputs}
    wanted = models.run_graph(graph, feeds)
    found = [models.run_graph(other, feeds) for other in others]
    return max(models.relative_error(got[name], wanted[name]) for got in found for name in wanted)


def test_self_attention_in_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, found = fused(SELF, tmp_path, monkeypatch)
    counts = found.change.counts()
    assert counts["attention"] == len(SELF), [str(each) for each in found.change.refusals]
    assert counts["skip_layernorm"] == 5  # two of each layer, one of the encoder's, whose norm comes first
    assert found.graph.op_counts().get("Softmax", 0) == 0
    masks = [node.inputs[1].producer().op_type for node in found.graph.model.graph if node.op_type == "FusedAttention"]
    assert masks.count("FusedScoreMask") >= len(SELF) - 1
    assert all(each.error is not None and each.error <= 1e-5 for each in found.change.applied)
    assert "Transpose" not in found.graph.op_counts()  # both layouts came to one
    assert worst(graph, [targets.get(name).lower(found.graph) for name in TABLES]) < 1e-5


def test_attention_to_another_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, found = fused(CROSS, tmp_path, monkeypatch)
    assert found.change.counts()["cross_attention"] == len(CROSS), [str(each) for each in found.change.refusals]
    assert worst(graph, [targets.get(name).lower(found.graph) for name in TABLES]) < 1e-5


def test_weights_that_are_needed_stay_and_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = "*{a}(x, x, x, key_padding_mask=p)"
    graph, found = fused({"used": ("M(batch_first=True)", call)}, tmp_path, monkeypatch)
    counts = found.change.counts()
    assert not {"sdpa", "flat_attention", "attention"} & counts.keys()
    reasons = [each.reason for each in found.change.refusals if each.rule == "flat_attention"]
    assert reasons and all("attention weights" in reason and "needed outside" in reason for reason in reasons)
    assert worst(graph, [targets.get(name).lower(found.graph) for name in TABLES]) < 1e-5
