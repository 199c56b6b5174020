"""Targets found by file name; TargetSpec, what a user writes: `tensorrt-rtx:sm89=fp16`."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..core import RecipeError, SourceError, did_you_mean, gpu_models, module_names

if TYPE_CHECKING:
    from ..graph import Graph
    from ._protocol import Target


def names() -> tuple[str, ...]:
    """All targets, by file name."""
    return tuple(name.replace("_", "-") for name in module_names(Path(__file__).parent))


def get(name: str) -> Target:
    """The target module of that name; RecipeError lists the known ones."""
    if name not in names():
        raise RecipeError(f"unknown target {name!r}{did_you_mean(name, names())}")
    return cast("Target", importlib.import_module(f".{name.replace('-', '_')}", __package__))


def lowerings(spec: TargetSpec, *, quantised: bool = False) -> Mapping[str, Any]:
    """The bodies that a target lowers fused operators to, for the proofs of the fusions; {} where it inlines them all."""
    target = get(spec.name)
    return target.lowerings(spec.sms, quantised=quantised) if hasattr(target, "lowerings") else {}


def refusal(spec: TargetSpec, precision: str, *, packed: bool = False, plugins: Sequence[str] = ()) -> str | None:
    """Why a target cannot build a precision for these SMs, or a graph without padding or with plugins; None where it can."""
    target = get(spec.name)
    asked = getattr(target, "plugin_refusal", None)
    if plugins and asked is None:
        able = ", ".join(name for name in names() if hasattr(get(name), "PLUGINS"))
        return f"--plugin: target {spec.name} takes no kernels of ours; {able} does"
    if plugins and asked is not None and (why := asked(plugins, precision, packed)):
        return cast("str", why)
    if packed and hasattr(target, "packed_refusal") and (why := target.packed_refusal(precision)):
        return cast("str", why)
    if packed and not getattr(target, "PACKS", False):
        able = ", ".join(name for name in names() if getattr(get(name), "PACKS", False))
        return f"--packed: target {spec.name} has no form of attention without padding; {able} have"
    return cast("str | None", target.refusal(spec.sms, precision)) if hasattr(target, "refusal") else None


def graph_refusal(spec: TargetSpec, graph: Graph) -> str | None:
    """Why a target cannot take the graph of a source, whatever it is fused to; None where it can."""
    target = get(spec.name)
    return cast("str | None", target.graph_refusal(graph)) if hasattr(target, "graph_refusal") else None


def require_takes(graph: Graph, builds: Sequence[tuple[TargetSpec, str]]) -> None:
    """Before any long work: SourceError where a target cannot take the operators or the quantised activations of a source."""
    from ..source import refuse_quantised  # loads onnx, which a list of targets does without

    for spec, precision in builds:
        if why := graph_refusal(spec, graph):
            raise SourceError(why)
        if precision not in getattr(get(spec.name), "CARRIES", ("fp32",)):
            refuse_quantised(graph, f"--{precision}")


@dataclasses.dataclass(frozen=True)
class TargetSpec:
    """`tensorrt-rtx:sm86,sm89=fp16`: a target, the SMs it is built for, and a precision of its own if it has one."""

    name: str
    sms: tuple[str, ...] = ()
    precision: str | None = None

    def __str__(self) -> str:
        text = self.name + (":" + ",".join(self.sms) if self.sms else "")
        return text + (f"={self.precision}" if self.precision else "")

    def directory_name(self, precision: str) -> str:
        """`tensorrt-rtx-sm89-fp16`; the SMs are left out where they are the target's default: `tensorrt-rtx-fp16`."""
        named = () if self.sms == get(self.name).DEFAULT_SMS else self.sms
        return "-".join((self.name, *named, precision))


def parse_spec(text: str) -> TargetSpec:
    """`NAME[:SM,SM...][=PRECISION]`, an SM also by a GPU model that has it (`l4`).

    RecipeError for an unknown target or an SM it cannot build for.
    """
    body, equals, precision = text.partition("=")
    name, colon, listed = body.partition(":")
    target = get(name)
    words = [word.strip() for word in listed.split(",")] if colon else []
    if (equals and not precision) or "" in words:
        raise RecipeError(f"target {text!r} has nothing behind {':' if '' in words else '='!r}; write NAME[:SM,...][=PRECISION]")
    if words and not target.SMS:
        raise RecipeError(f"target {text!r}: {name} takes no SM")
    if len(set(words)) != len(words):
        raise RecipeError(f"target {text!r} names an SM twice; name each once")
    sms = tuple(dict.fromkeys(_sm_of(word, text, target.SMS) for word in words))
    return TargetSpec(name, sms or target.DEFAULT_SMS, precision or None)


def _sm_of(word: str, text: str, sms: tuple[str, ...]) -> str:
    """The SM that a word of a target means. RecipeError where the target cannot build for it."""
    sm = next((gpu.sm for gpu in gpu_models.TABLE if gpu.name == word), word)
    if sm in sms:
        return sm
    what = f"target {text!r}: {text.partition(':')[0]} cannot build for {word!r}"
    of_sm = gpu_models.of_sm(sm)
    if not of_sm:
        raise RecipeError(what + did_you_mean(word, (*sms, *(gpu.name for gpu in gpu_models.TABLE if gpu.sm in sms))))
    listed = f"{sm} is {', '.join(of_sm)}" if sm == word else f"it is {sm}"
    own = get(text.partition(":")[0])
    if hasattr(own, "why_not") and (why := own.why_not(sm)):
        listed = f"{listed}; {why}"
    raise RecipeError(
        f"{what} ({listed}); it builds for {', '.join(sms)}. For {word} use the target tensorrt, on a host with that GPU"
    )
