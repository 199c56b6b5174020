"""Where a node came from: the nodes of the source graph that it stands for, each with PyTorch module, class and source line.

Written once, when a graph is imported (`mark`), in place of what the exporter left, which is ten times as long. From then on
it is carried: whatever puts nodes in the place of others gives them what these had, united (`take_over` for rules, `kept` for
passes, `spread` for the body of a fused operator). An exporter's notes say one module, which after a fusion is the wrong one.

A node's text is one record a line, its fields parted by tabs: module path, class, file:line, then `OpType name` for each node.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from ..core import parse_json
from .starting import may_start

if TYPE_CHECKING:
    import onnx_ir as ir

ORIGIN = "bertc.origin"
ADVICE = "an exporter wrote it; take the metadata_props off the node, or export the model again"
WEIGHT_ORIGINS = "bertc.origin.weights"  # of a fused node, until its body takes its place: the origins of its weights, by input
SCOPES, CLASSES, TRACE = (f"pkg.torch.onnx.{name}" for name in ("name_scopes", "class_hierarchy", "stack_trace"))
EXPORTER_KEYS = (SCOPES, CLASSES, TRACE, "namespace")
# A name by torch.jit, perhaps behind the name of the rule that made the node.
JIT_NAME = re.compile(r"(?:[^/]*\.)?/(.+)/[^/]+")
FRAME = re.compile(r'File "([^"]+)", line (\d+)')
JIT_FRAME = re.compile(r"^(\S.*\.py)\((\d+)\): ", re.MULTILINE)
PACKAGES = re.compile(r".*/(?:site|dist)-packages/")
NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"  # what torch.export calls the place of its own size checks
EXPORTER = ("torch/", "onnxscript/", "runtime_assert.py")
# What a lowering cuts out of the packed weights of attention: which weight, which part of it.
WEIGHT_PARTS = {"Wq": (2, 0), "Wk": (2, 1), "Wv": (2, 2), "q_bias": (2, 0), "out_bias": (4, 0)}


@dataclasses.dataclass(frozen=True)
class Record:
    """Nodes of the source graph (`OpType name`) that one line of one module's code made. `place` is `file:line`.."""

    module: str
    kind: str
    place: str
    nodes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a node stands for, the records in the order in which they were united."""

    records: tuple[Record, ...] = ()

    @functools.cached_property
    def modules(self) -> tuple[str, ...]:
        """Every module path, in order; the root of the model ('') only where there is no other."""
        found = tuple(dict.fromkeys(r.module for r in self.records if r.module))
        return found or tuple(dict.fromkeys(r.module for r in self.records))

    @property
    def module(self) -> str:
        """The module that all of them are in: their common prefix."""
        return common_module([path for path in self.modules if path])

    @property
    def places(self) -> tuple[str, ...]:
        """Every `file:line`, in order; those of the module that all are in come first."""
        own = [r.place for r in self.records if r.module == self.module]
        return tuple(place for place in dict.fromkeys([*own, *(r.place for r in self.records)]) if place)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the source graph's nodes."""
        return tuple(dict.fromkeys(n.partition(" ")[2] for r in self.records for n in r.nodes))

    def of_type(self, op_type: str) -> Origin:
        """What of it came of source nodes of one type; nothing where none did."""
        found = [(r, tuple(n for n in r.nodes if n.partition(" ")[0] == op_type)) for r in self.records]
        return Origin(tuple(dataclasses.replace(r, nodes=nodes) for r, nodes in found if nodes))

    def without(self, other: Origin) -> Origin:
        """What of it is not in the other."""
        taken = {node for r in other.records for node in r.nodes}
        found = [(r, tuple(n for n in r.nodes if n not in taken)) for r in self.records]
        return Origin(tuple(dataclasses.replace(r, nodes=nodes) for r, nodes in found if nodes))

    @property
    def text(self) -> str:
        """As it stands in a node's metadata."""
        return "\n".join("\t".join((r.module, r.kind, r.place, *r.nodes)) for r in self.records)

    def __str__(self) -> str:
        """`encoder.layer.3.attention.self (BertSelfAttention) modeling_bert.py:190 [+2]`: the number of further lines."""
        kind = next((r.kind for r in self.records if r.module == self.module and r.kind), "")
        words = [self.module or ", ".join(self.nodes[:1]), f"({kind})" if kind else ""]
        places = self.places
        words += [places[0].rpartition("/")[2]] if places else []
        words += [f"[+{len(places) - 1}]"] if len(places) > 1 else []
        return " ".join(word for word in words if word) or "?"

    def to_json(self) -> dict[str, Any]:
        return {"module": self.module, "modules": list(self.modules), "places": list(self.places), "nodes": list(self.nodes)}


def common_module(paths: Sequence[str]) -> str:
    """The common prefix of module paths."""
    found = []
    for step in zip(*(path.split(".") for path in paths), strict=False):
        if len(set(step)) > 1:
            break
        found.append(step[0])
    return ".".join(found)


@functools.lru_cache(maxsize=4096)
def parse_origin(text: str) -> Origin:
    """An Origin from its text."""
    rows = [line.split("\t") for line in text.split("\n") if line]
    return Origin(tuple(Record(row[0], row[1], row[2], tuple(row[3:])) for row in rows if len(row) > 2))


def origin_of(node: ir.Node) -> Origin:
    """Where a node came from: what it carries, else what its exporter left of it.

    Raises InputError for an exporter's notes that cannot be read.
    """
    text = node.metadata_props.get(ORIGIN)
    return parse_origin(text) if text is not None else _imported(node)


def module_path(node: ir.Node) -> str:
    """The PyTorch module path of a node (`encoder.layer.0.attention.self`), the first of one that stands for many; or ''."""
    return next((record.module for record in origin_of(node).records), "")


def unite_origins(origins: Iterable[Origin]) -> Origin:
    """All records, in order; those of one line of one module become one."""
    found: dict[tuple[str, str, str], dict[str, None]] = {}
    for origin in origins:
        for r in origin.records:
            found.setdefault((r.module, r.kind, r.place), {}).update(dict.fromkeys(r.nodes))
    return Origin(tuple(Record(*key, tuple(nodes)) for key, nodes in found.items()))


# ---- at import -------------------------------------------------------------------------------------------------------


def mark_origins(model: ir.Model) -> None:
    """Write the origin of every node that has none, in place of what the exporter left."""
    for node in model.graph.all_nodes():
        if ORIGIN not in node.metadata_props:
            node.metadata_props[ORIGIN] = _imported(node).text
        for key in EXPORTER_KEYS:
            node.metadata_props.pop(key, None)


def _imported(node: ir.Node) -> Origin:
    scopes, classes = (_listed(node, key) for key in (SCOPES, CLASSES))
    # The last scope is the operator itself, the one before it the innermost module.
    module = scopes[-2] if len(scopes) > 1 and scopes[-2] != NO_MODULE else ""
    if not scopes and (named := JIT_NAME.fullmatch(node.name or "")):
        module = named[1].replace("/", ".")
    kind = classes[-2].rpartition(".")[2] if len(classes) > 1 and classes[-2] != NO_MODULE else ""
    place = _place(_frames(node), classes[:-1])
    name = re.sub(r"[\t\n]", " ", node.name or next((v.name or "" for v in node.outputs), ""))
    return Origin((Record(module, kind, place, (f"{node.op_type} {name}",)),))


def _listed(node: ir.Node, key: str) -> list[str]:
    text = node.metadata_props.get(key, "")
    if not text:
        return []
    where = f"{key} of node {node.name!r:.200}"
    return [str(each) for each in parse_json(text.replace("'", '"'), list[Any], where=where, advice=ADVICE)]


def _weight_origins(node: ir.Node) -> dict[str, list[str]]:
    """{index of an input: where the parts of that weight were read}; an .onnx file may say anything of it."""
    where = f"{WEIGHT_ORIGINS} of node {node.name!r:.200}"
    text = node.metadata_props.get(WEIGHT_ORIGINS, "{}")
    return dict(parse_json(text, dict[Annotated[str, Meta(pattern="^[0-9]{1,6}$")], list[str]], where=where))


def _frames(node: ir.Node) -> list[tuple[str, str]]:
    """(file, line) from the outermost call to the innermost."""
    trace = FRAME.findall(node.metadata_props.get(TRACE, ""))
    found = trace or JIT_FRAME.findall(node.doc_string or "")[::-1]
    return [(_relative(file.replace("\\", "/")), line) for file, line in found]


def _relative(file: str) -> str:
    """Without what differs between two machines."""
    inside = PACKAGES.sub("", file)
    return inside.rpartition("/")[2] if inside.startswith("/") or inside[1:3] == ":/" else inside


def _place(frames: Sequence[tuple[str, str]], classes: Sequence[str]) -> str:
    """`file:line` of the innermost call in the code of the innermost module that is not torch's own; '' where no code is."""
    own = [frame for frame in frames if not frame[0].startswith(EXPORTER)]
    for kind in reversed([kind for kind in classes if not kind.startswith("torch.")]):
        file = kind.rpartition(".")[0].replace(".", "/") + ".py"
        if found := [frame for frame in own if frame[0] == file]:
            return ":".join(found[-1])
    return ":".join(own[-1]) if own else ""


# ---- what takes the place of other nodes -----------------------------------------------------------------------------


def take_over_origins(old: Sequence[ir.Node], new: Sequence[ir.Node]) -> Origin:
    """Give new nodes the united origin of those whose place they take, and to each the origins of the weights that it reads."""
    origin = unite_origins(map(origin_of, old))
    readers: dict[str, list[Origin]] = {}
    for node in old:
        given = _weight_origins(node)
        for index, value in enumerate(node.inputs):
            if value is not None and value.const_value is not None:
                parts = [parse_origin(text) for text in given.get(str(index), ())] or [origin_of(node)]
                readers.setdefault(str(value.name), parts)
    for node in new:
        node.metadata_props[ORIGIN] = origin.text
        weights = {str(i): found for i, value in enumerate(node.inputs) if (found := _parts(value, readers))}
        if weights and node.domain:
            node.metadata_props[WEIGHT_ORIGINS] = json.dumps(weights)
    return origin


def _parts(value: ir.Value | None, readers: Mapping[str, Sequence[Origin]]) -> list[str]:
    """Where the parts of a packed weight, which is named after them, were read; [] where this is not known."""
    if value is None or value.const_value is None:
        return []
    name = str(value.name)
    if name in readers:
        return [origin.text for origin in readers[name]]
    parts = name.split("+")
    return [readers[part][0].text for part in parts] if all(part in readers for part in parts) else []


def spread_origin(node: ir.Node, body: Sequence[ir.Node]) -> None:
    """Give the nodes of a fused operator's body what of its origin is theirs: that of the reader of the same weight, else of the
    source nodes of the same type, else all of it."""
    whole = origin_of(node)
    weights = {int(i): [parse_origin(text) for text in texts] for i, texts in _weight_origins(node).items()}
    by_weight = {new: _by_weight(node, new, weights) for new in body}
    claimed = unite_origins(by_weight.values())
    for new in body:
        alike = whole.of_type(new.op_type)
        found = by_weight[new]
        found = found.of_type(new.op_type) if found.of_type(new.op_type).records else found
        chosen = found if found.records else alike.without(claimed)
        new.metadata_props[ORIGIN] = (chosen if chosen.records else alike if alike.records else whole).text


def _by_weight(node: ir.Node, new: ir.Node, weights: Mapping[int, Sequence[Origin]]) -> Origin:
    found: list[Origin] = []
    for value in new.inputs:
        if value is None or value.const_value is None:
            continue
        index = next((i for i, given in enumerate(node.inputs) if given is value), -1)
        cut = WEIGHT_PARTS.get(str(value.name).rpartition("/")[2])
        if index in weights:
            found += weights[index]
        elif cut is not None and len(weights.get(cut[0], ())) > cut[1]:
            found.append(weights[cut[0]][cut[1]])
    return unite_origins(found)


def uniting_origins(rule: Any) -> Any:
    """An onnxscript rule that unites the origins of what it matched onto what it puts there (its own merger keeps the first)."""
    starts = may_start(rule)

    def try_rewrite(model: ir.Model, graph: Any, node: ir.Node, **named: Any) -> Any:
        delta = rule.try_rewrite(model, graph, node, **named) if starts(node) else None
        if delta is not None:
            take_over_origins(delta.match.nodes, delta.new_nodes)
        return delta

    made = type("Uniting", (), {"__getattr__": lambda self, name: getattr(rule, name)})()
    made.try_rewrite = try_rewrite
    return made


@contextlib.contextmanager
def keep_origins(graph: ir.Graph) -> Iterator[None]:
    """Round passes that know nothing of origins: what they put in the place of a node takes its origin, and so does its twin.

    Who stands in a node's place is seen by its readers: what they read now was put there, if it is new, or is the node's like.
    """
    before = [(node, [[(use.node, use.idx) for use in value.uses()] for value in node.outputs]) for node in graph]
    known, outputs = {node for node, _ in before}, list(graph.outputs)
    yield
    heirs: dict[ir.Node, ir.Node] = {}
    for node, uses in reversed(before):
        if node.graph is graph:
            continue
        heir = _heir(node, uses, outputs, graph, heirs)
        if heir is None or (heir in known and heir.op_type != node.op_type):
            continue
        heirs[node] = heir
        heir.metadata_props[ORIGIN] = unite_origins(
            [origin_of(heir), origin_of(node)] if ORIGIN in heir.metadata_props else [origin_of(node)]
        ).text
    fill_origins(graph)


def _heir(
    node: ir.Node, uses: Sequence[Any], outputs: Sequence[ir.Value], graph: ir.Graph, heirs: Mapping[ir.Node, ir.Node]
) -> ir.Node | None:
    for value, readers in zip(node.outputs, uses, strict=True):
        found = [graph.outputs[i] for i, output in enumerate(outputs) if output is value]
        for user, index in readers:
            reader = user if user.graph is graph else heirs.get(user)
            found += [reader.inputs[index]] if reader is not None and index < len(reader.inputs) else []
        made = next((v.producer() for v in found if v is not None and v.producer() is not None), None)
        if made is not None and made.graph is graph and made is not node:
            return made
    return None


def fill_origins(graph: ir.Graph) -> None:
    """Nodes without an origin (the inner ones of several that a pass made, a cast) get that of their readers, else of the makers
    of what they read."""
    nodes = list(graph)
    for node in reversed(nodes):
        if ORIGIN not in node.metadata_props:
            _take(node, [use.node for value in node.outputs for use in value.uses()])
    for node in nodes:
        if ORIGIN not in node.metadata_props:
            makers = [value.producer() for value in node.inputs if value is not None]
            _take(node, [maker for maker in makers if maker is not None])


def _take(node: ir.Node, neighbours: Sequence[ir.Node]) -> None:
    found = [origin_of(each) for each in neighbours if ORIGIN in each.metadata_props]
    if found:
        node.metadata_props[ORIGIN] = unite_origins(found).text
