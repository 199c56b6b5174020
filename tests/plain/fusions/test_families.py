"""Each model family as each exporter spells it: golden graphs fused with proof, counts as committed, numbers as in the source."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from models import session

from benchmarks import golden, zoo
from benchmarks.comparing import distance
from benchmarks.comparing import session as open_session
from bertc.fusions import families
from bertc.fusions.engine import Fused
from bertc.ops import expansion as canonical

FOLDER = Path(__file__).parent.parent.parent / "golden" / "families"
CONSTRAINTS = Path(__file__).parent.parent.parent.parent / "constraints.txt"
GOLDENS = sorted(FOLDER.glob("*.onnxtxt*"))
REFRESH = "where that is meant, `python -m benchmarks.golden` writes counts.json again (`make coverage` the goldens, too)"
TOLERANCE = 1e-5  # fp32 over two layers; what was measured is 2e-6 at most


@functools.cache
def committed() -> dict[str, Any]:
    return json.loads((FOLDER / golden.COUNTS).read_text("utf-8"))


# test_families_seq2seq.py exports these and holds them to their promise.
ELSEWHERE = {"gpt2-step", "bert-step", "bert-decoder", "t5-decoder", "whisper-decoder"}


def test_the_goldens_are_there() -> None:
    """An empty folder would pass every other test."""
    assert {golden.name_of(path) for path in GOLDENS} == set(committed())
    models = {name.partition(".")[0] for name in committed()}
    assert models == set(zoo.ROWS) - set(zoo.TABLE_ONLY)
    held = {zoo.family(name) for name in models} | ELSEWHERE
    assert set(families.FAMILIES) <= held, "a promise without a model in benchmarks/zoo.py"


def test_no_golden_is_older_than_the_pinned_exporters() -> None:
    pins = dict(line.split("==") for line in CONSTRAINTS.read_text("utf-8").split() if "==" in line)
    for path in GOLDENS:
        made = golden.versions(path)
        old = {tool: made[tool] for tool in ("torch", "transformers") if made[tool] != pins[tool]}
        assert not old, f"{path.name} was exported with {old}, constraints.txt pins others; run `make coverage`"


@pytest.mark.parametrize("path", GOLDENS, ids=golden.name_of)
def test_a_family_fuses_as_committed(path: Path) -> None:
    """Counts by rule, the family's promise where it is claimed, and the whole graph against its source under every mask."""
    name, _, exporter = golden.name_of(path).partition(".")
    fused = golden.fused(path)
    found, wanted = golden.counts(fused), committed()[golden.name_of(path)]
    assert found == wanted, changed(found, wanted, fused)
    promised = families.expected_counts(zoo.family(name), zoo.ROWS[name].layers) if zoo.family(name) in families.FAMILIES else {}
    if exporter in zoo.CLAIMED and promised:
        short = {rule: n for rule, n in promised.items() if isinstance(found, str) or found.get(rule, 0) < n}
        assert not short, changed(found, promised, fused)
    if isinstance(fused, Fused):
        assert far(path, fused) <= TOLERANCE


def test_a_regression_names_the_rule_and_the_node(tmp_path: Path) -> None:
    """One softmax over another axis: one layer loses its attention, and the message says where and why."""
    text = golden.text_of(FOLDER / "bert.dynamo-eager.onnxtxt")
    before = "softmax_1 = Softmax <axis: int = -1>"
    assert text.count(before) == 1
    broken = tmp_path / "bert.dynamo-eager.onnxtxt"
    broken.write_text(text.replace(before, before.replace("-1", "2")), encoding="utf-8")
    fused = golden.fused(broken)
    found, wanted = golden.counts(fused), committed()["bert.dynamo-eager"]
    assert found["attention"] == wanted["attention"] - 1
    message = changed(found, wanted, fused)
    assert "attention: 1 of 2" in message and "sdpa: 1 of 2" in message
    assert "in encoder.layer.1.attention" in message


def far(path: Path, fused: Fused) -> float:
    """The worst distance of the fused graph from its source, by mask."""
    proto = golden.read(path)
    source, result = open_session(proto.SerializeToString()), session(canonical.expand(fused.graph))
    given = golden.inputs(proto)
    kinds = zoo.MASKS if any(name.endswith("attention_mask") for name in given) else zoo.MASKS[:1]
    feeds = [zoo.feeds(given, kind, padding=golden.padding(path)) for kind in kinds]
    return max(distance(result.run(None, each), source.run(None, each), each) for each in feeds)


def changed(found: Any, wanted: Any, fused: Fused | str) -> str:
    """Which rules found fewer or more, with the near-misses of those that found fewer."""
    if isinstance(found, str) or isinstance(wanted, str) or isinstance(fused, str):
        return f"found {found}, wanted {wanted}; {REFRESH}"
    rules = [rule for rule in sorted({*found, *wanted}) if found.get(rule, 0) != wanted.get(rule, 0)]
    lines = [f"{rule}: {found.get(rule, 0)} of {wanted.get(rule, 0)}" for rule in rules]
    fewer = {rule for rule in rules if found.get(rule, 0) < wanted.get(rule, 0)}
    reasons = dict.fromkeys(f"  {each}" for each in fused.change.refusals if each.rule in fewer)
    return "\n".join([*lines, *reasons, REFRESH])
