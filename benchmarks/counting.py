"""What the fusers find in the zoo's exports, written down beside each export: bertc's own counts, and its peers'.

One process a model, with a limit; a fuser that raises, or a process that dies, is a line with its reason. What was counted with
the same bertc (its sources decide) or the same peer's version is not counted again.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bertc
from bertc.fusions import file

from . import exporting, peers, zoo
from .comparing import distance, session

FUSERS = ("bertc", "onnxruntime", "onnxscript")
LIMIT = 900  # seconds for one model, all exporters and fusers


@functools.cache
def fuser_key(fuser: str) -> str:
    """What decides a fuser's answer: the sources of bertc, the version of a peer and how it is called."""
    if fuser == "bertc":
        roots = [Path(bertc.__file__).parent, Path(__file__).parent.parent / "plugins"]
        texts = [path.read_bytes() for root in roots for path in sorted(root.rglob("*.py"))]
    else:
        texts = [importlib.metadata.version(fuser).encode(), Path(peers.__file__).read_bytes()]
    return hashlib.sha256(b"\0".join([*texts, Path(__file__).with_name("comparing.py").read_bytes()])).hexdigest()[:16]


def path_of(name: str, exporter: str, fuser: str) -> Path:
    return exporting.FOLDER / f"{name}.{exporter}.{fuser}.json"


def known(name: str, exporter: str, fuser: str) -> dict[str, Any] | None:
    """What was counted before for the same export and the same fuser, or None."""
    path = path_of(name, exporter, fuser)
    found = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return found if found.get("key") == [exporting.key(name), fuser_key(fuser)] else None


def exported(name: str) -> list[str]:
    """The exporters that made a file of this model."""
    return [e for e in exporting.EXPORTERS if "reason" not in (exporting.known(name, e) or {"reason": ""})]


def ensure(names: Sequence[str], jobs: int) -> None:
    """Count what is missing, `jobs` models at a time."""
    missing = [n for n in names if any(known(n, e, f) is None for e in exported(n) for f in FUSERS)]
    with ThreadPoolExecutor(jobs) as pool:
        for line in pool.map(_one, missing):
            print(line, flush=True)


def _one(name: str) -> str:
    start = time.perf_counter()
    died = ""
    try:
        command = [sys.executable, "-m", "benchmarks.counting", name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=exporting.ALONE, check=False)
        died = f"the process ended with {done.returncode}" if done.returncode else ""
    except subprocess.TimeoutExpired:
        died = f"not done after {LIMIT} s"
    first = [(e, f) for e in exported(name) for f in FUSERS if died and known(name, e, f) is None]
    if first:  # what it died of; the rest is found by the next run
        write(name, *first[0], {"reason": died})
    return f"counted {name} in {time.perf_counter() - start:.0f} s {died}"


def write(name: str, exporter: str, fuser: str, what: Mapping[str, Any]) -> None:
    path = path_of(name, exporter, fuser)
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    aside.write_text(json.dumps({"key": [exporting.key(name), fuser_key(fuser)], **what}, indent=1), encoding="utf-8")
    aside.replace(path)


def count(name: str, exporter: str, fuser: str) -> None:
    """Run one fuser over one export and write down what it found and how far its graph is from the export."""
    source = exporting.paths(name, exporter)[0]
    fusers: Mapping[str, Callable[[Path, Path, zoo.Row], dict[str, Any]]] = {
        "bertc": _bertc,
        "onnxruntime": peers.onnxruntime,
        "onnxscript": peers.onnxscript,
    }
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "fused.onnx")
        start = time.process_time()
        try:
            found = fusers[fuser](source, made, zoo.ROWS[name])
        except Exception as error:  # noqa: BLE001  a peer raises whatever it likes
            return write(name, exporter, fuser, {"reason": exporting.short(error)})
        found["seconds"] = round(time.process_time() - start, 2)
        return write(name, exporter, fuser, found | {"distance": distances(name, exporter, source, made)})


def distances(name: str, exporter: str, source: Path, made: Path) -> dict[str, float | str]:
    """By mask, how far the fused file is from the exported one; or why it does not run."""
    known = exporting.known(name, exporter)
    assert known is not None
    given = {n: zoo.Input(each["dtype"], tuple(each["dims"])) for n, each in known["inputs"].items()}
    found: dict[str, float | str] = {}
    for mask in zoo.MASKS if any(n.endswith("attention_mask") for n in given) else zoo.MASKS[:1]:
        feeds = zoo.feeds(given, mask, padding=known["padding"])
        try:
            wanted = session(source).run(None, feeds)
        except Exception as error:  # noqa: BLE001  onnxruntime's exceptions share no public base class
            found[mask] = f"the export itself does not run: {exporting.short(error)}"
            continue
        try:
            found[mask] = distance(session(made).run(None, feeds), wanted, feeds)
        except Exception as error:  # noqa: BLE001
            found[mask] = exporting.short(error)
    return found


def _bertc(source: Path, made: Path, row: zoo.Row) -> dict[str, Any]:
    """Fuse by the public path, every match proven; the file holds the canonical bodies as functions."""
    from bertc.fusions import engine as fuse

    graph, fused = file.fuse_file(source, made, force=True, prove=True, rules_file=None)
    return {
        "counts": fused.change.counts(),
        "refusals": sorted({f"{r.rule}: {r.op} in {r.module or '?'}: {r.reason}" for r in fused.change.refusals}),
        "layers_seen": fuse.layers_of(graph),
        "nodes": len(fused.graph.model.graph),
    }


def main() -> None:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    for name in sys.argv[1:]:
        for exporter in exported(name):
            for fuser in FUSERS:
                if known(name, exporter, fuser) is None:
                    count(name, exporter, fuser)


if __name__ == "__main__":
    main()
