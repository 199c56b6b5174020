"""CPU seconds of each pass of `bertc fuse` on one graph: python -m benchmarks.pass_times SHAPE NODES [prove]; a line of JSON.

A pass that another one calls counts for itself. SHAPE: one of long_graphs.SHAPES.
"""

from __future__ import annotations

import functools
import importlib
import json
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from . import long_graphs
from .tools import table

# Functions by where they are looked up when they are called.
FUNCTIONS = {
    "bertc.source.onnx_file": ("read_onnx_file", "load_graph", "infer_types", "name_dims", "settle_dims", "as_float"),
    "bertc.source": ("settle_sizes", "truth_of_file"),
    "bertc.graph.opset": ("upgrade_opset",),
    "bertc.graph.normalization": (
        "normalize", "fold_small", "eliminate_identities", "share_dims", "unify_dims", "deduplicate_initializers",
        "restore_io", "name_apart",
    ),
    "bertc.fusions.engine": ("mark_origins", "sink_swaps", "_activations"),
    "bertc.fusions.file": ("save_graph",),
    "bertc.fusions.proof.trial": ("check_written",),
    "bertc.ops.expansion": ("as_functions",),
}  # fmt: skip
WANTED = {"chain": 60.0}  # CPU seconds of 20,000 nodes without proofs
SHARE = 0.25  # of the largest pass
HEAD = ("graph", "nodes", "proofs", "CPU s", "ms a node", "to the least", "largest pass", "its share", "peak MiB", "wanted")


class Clock:
    """Process seconds by name, each without what was called inside."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self._inside: list[str] = []
        self._last = time.process_time()

    def timed(self, work: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
        @functools.wraps(work)
        def call(*given: Any, **named: Any) -> Any:
            self._enter(name(*given, **named))
            try:
                return work(*given, **named)
            finally:
                self._leave()

        return call

    def _enter(self, name: str) -> None:
        self._count()
        self._inside.append(name)

    def _leave(self) -> None:
        self._count()
        self._inside.pop()

    def _count(self) -> None:
        now = time.process_time()
        self.spent[self._inside[-1] if self._inside else "the rest"] += now - self._last
        self._last = now


def watch(clock: Clock) -> None:
    """Put the clock around every pass of this process."""
    import onnx_ir as ir
    from onnxscript.rewriter import RewriteRuleSet

    from bertc.fusions import engine

    for module, names in FUNCTIONS.items():
        found = importlib.import_module(module)
        for name in names:
            setattr(found, name, clock.timed(getattr(found, name), lambda *_, _name=name, **__: _name))
    base = ir.passes.PassBase
    base.__call__ = clock.timed(base.__call__, lambda self, *_: type(self).__name__)  # type: ignore[method-assign]
    named = clock.timed(RewriteRuleSet.apply_to_model, lambda *_, **__: "clean-up rules")
    RewriteRuleSet.apply_to_model = named  # type: ignore[method-assign]
    engine.apply_rules = clock.timed(engine.apply_rules, lambda _, rules, *__, **___: f"rule {rules[0][0]}")
    for name in engine.ORDER:
        rule = importlib.import_module(f"bertc.fusions.rules.{name}")
        if hasattr(rule, "apply"):
            rule.apply = clock.timed(rule.apply, lambda *_, _name=name, **__: f"rule {_name}")


def measure(shape: str, count: int, prove: bool) -> dict[str, Any]:
    """{"nodes", "cpu", "passes": {name: CPU seconds}, "peak" in MiB}."""
    from bertc.fusions import file

    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "long.onnx")
        long_graphs.write(shape, count, path)
        nodes = len(onnx.load(path, load_external_data=False).graph.node)
        clock = Clock()
        watch(clock)
        work = clock.timed(file.fuse_file, lambda *_, **__: "the rest")
        start = time.process_time()
        work(path, path.with_name("out.onnx"), force=False, prove=prove, rules_file=None)
        cpu = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"shape": shape, "nodes": nodes, "prove": prove, "cpu": cpu, "passes": dict(clock.spent.most_common()), "peak": peak}


def rows(found: list[dict[str, Any]]) -> str:
    """The table of several measurements."""
    lines = []
    for each in found:
        alike = [other for other in found if (other["shape"], other["prove"]) == (each["shape"], each["prove"])]
        least = min(other["cpu"] / other["nodes"] for other in alike)
        name, spent = max(each["passes"].items(), key=lambda item: item[1] if item[0] != "the rest" else 0)
        limit = WANTED.get(each["shape"]) if each["nodes"] >= 20_000 and not each["prove"] else None
        per = each["cpu"] / each["nodes"]
        lines.append([
            each["shape"], f"{each['nodes']:,}", "yes" if each["prove"] else "no", f"{each['cpu']:.1f}", f"{1000 * per:.2f}",
            f"{per / least:.2f}" if len(alike) > 1 else "", name, f"{spent / each['cpu']:.0%}", f"{each['peak']:.0f}",
            f"< {limit:.0f} s, no pass above {SHARE:.0%}" if limit else "",
        ])  # fmt: skip
    return table(HEAD, lines)


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), "prove" in sys.argv[3:])))
