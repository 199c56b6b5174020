"""Names that try to be more than names: markup, scripts, links, terminal sequences, commands of CI runners."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RUN = "window.pwned=1;document.documentElement.dataset.pwned=1"
MARKUP = (
    f"<script>{RUN}</script>",
    f'"><img src=x onerror="{RUN}">',
    f"'><svg onload={RUN}>",
    "{{7*7}}{% raw %}",
    f"</style></title></textarea></pre><script>{RUN}</script>",
    f"javascript:{RUN}",
    f"]]>--><iframe srcdoc='<script>parent.{RUN}</script>'>",
    "$\\frac{$ _x &lt;b&gt; --flag.of-<wbr>.a.name.longer.than.eighteen&amp;letters",
)
STEERING = {  # what must not reach a terminal as it is, and how it is shown
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "\x1b[31mred\x1b[2J": r"\x1b[31mred\x1b[2J",
    "\x1b]8;;http://x\x1b\\link": r"\x1b]8;;http://x\x1b" + "\\link",
    "\r\b\x01\x7f": r"\r\x08\x01\x7f",
    "\x9b31m\x85": r"\x9b31m\x85",
    "\u202egnp\u2066\u2069\u200f": r"\u202egnp\u2066\u2069\u200f",
    "a\u200bb\ufeffc\u2028d\u2029": r"a\u200bb\ufeffc\u2028d\u2029",
    "\U000e0041tag": r"\U000e0041tag",
    "n\nengine: verified": r"n\nengine: verified",
    "[red]bold[/red][link=http://x]": "[red]bold[/red][link=http://x]",
    ":warning: :x:": ":warning: :x:",
    "##[set-output name=a;]b": r"##\x5bset-output name=a;]b",
}
NAME = "/".join(STEERING)
SHOWN = "/".join(STEERING.values())
_STEERS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)


def poisoned(value: Any, text: str) -> Any:
    """A document with `text` behind every string and as one more name of every object, its value that of the first."""
    if isinstance(value, str):
        return value + text
    if isinstance(value, list):
        return [poisoned(each, text) for each in value]
    if not isinstance(value, dict) or not value:
        return value
    made = {name: poisoned(each, text) for name, each in value.items()}
    return made | {text: next(iter(made.values()))}


class Elements(HTMLParser):
    """The kinds of elements of a page with the names of their attributes, without those that `breakable` puts in; its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.kinds: set[tuple[str, tuple[str, ...]]] = set()
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "wbr" and ("class", "flag") not in attrs:
            self.kinds.add((tag, tuple(sorted(name for name, _ in attrs))))

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        self.kinds.add(("!--", (data,)))


def steers(text: str) -> list[str]:
    """What in a printed text is no letter and no newline of ours."""
    return _STEERS.findall(text)


def model(path: Path, name: str = NAME) -> Path:
    """An .onnx file in which everything that can have a name has this one."""
    x, y = f"x{name}", f"y{name}"
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), f"w{name}")
    nodes = [
        helper.make_node("MatMul", [x, f"w{name}"], [f"h{name}"], name=f"m{name}"),
        helper.make_node("Tanh", [f"h{name}"], [y], name=f"t{name}"),
    ]
    infos = [helper.make_tensor_value_info(each, TensorProto.FLOAT, [f"batch{name}", 4]) for each in (x, y)]
    graph = helper.make_graph(nodes, f"g{name}", infos[:1], infos[1:], [weight], doc_string=name)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9, producer_name=name)
    onnx.save(made, path)
    return path
