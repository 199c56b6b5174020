"""The page of a fleet: models, GPUs and precisions side by side. The words and the order are in fleet.html."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ...core import InputError
from .. import document as report
from . import page_plots as drawn
from .marks import ReportView
from .single import verdict_words
from .templates import breakable, environment

LISTS = ("gpu", "sm", "reason")  # fields that a fleet's status may write as lists: gpus, sms, reasons
NOT_SHOWN = frozenset({"entries", "reports", "summary", "stages", "code"})  # stages and code: keys and hashes of what was built
TEXTS = ("model", "gpu", "sm", "target", "precision", "state", "path", "reason", "built_precision", "precision_why")
NUMBERS = ("bytes", "kernels", "seconds")
MOST = 1e15  # seconds or bytes: what is more was not measured
PLACE = ("gpu", "sm", "target", "path")  # one of them tells an entry from another
STATE_WORDS = {"other-host": "needs another host"}  # as `fleet status` prints it; the others are words already
IN_REPORT = {"bytes": ("size", "total"), "kernels": ("engine", "kernels", "count"), "seconds": ("summary", "seconds")}
GOOD, BAD = (
    frozenset({"done", "built", "cached", "ok", "verified", "fresh"}),
    frozenset({"failed", "error", "refused", "missing"}),
)


def render(status: Mapping[str, Any], documents: Sequence[Mapping[str, Any] | None]) -> str:
    """The page as HTML text. InputError for a status without entries, or whose entries have neither GPU nor target."""
    data = fleet_document(status, documents)
    doc = ReportView(data)
    models = {name: _model(doc, places) for name, places in _grouped(data["entries"]).items()}
    html = (
        environment()
        .get_template("fleet.html")
        .render(
            doc=doc,
            n=doc.mark,
            tree=doc.tree,
            entries=data["entries"],
            models=models,
            rest=[key for key in data if key not in NOT_SHOWN],
            tone=state_colour,
            words=STATE_WORDS,
            verdict=lambda at: verdict_words(doc.get("reports", at)),
            worst=lambda at: worst(doc, at),
            fact=lambda at, key: fact(doc, at, key),
        )
    )
    return breakable(html)


def fleet_document(status: Mapping[str, Any], documents: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """What the page is made from: {"entries", "reports", "summary"}; each number on the page has its place here."""
    entries = status.get("entries")
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise InputError("a fleet report needs a list of entries, as bertc fleet status --json writes it; found none")
    for at, entry in enumerate(entries):
        if isinstance(entry, Mapping):
            _check_fields(entry, f"entry {at} of the fleet's status")
    entries = [_plain(entry) if isinstance(entry, Mapping) else entry for entry in entries]
    for at, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or not any(entry.get(key) for key in PLACE):
            raise InputError(f"entry {at} of the fleet's status has none of {', '.join(PLACE)}")
    if len(documents) != len(entries):
        raise InputError(f"{len(entries)} entries but {len(documents)} reports; give None for an entry without a report")
    states = Counter(_state(entry, found) for entry, found in zip(entries, documents, strict=True))
    rest = {key: value for key, value in status.items() if key != "entries"}
    filled = [_filled(entry, found) for entry, found in zip(entries, documents, strict=True)]
    return {**rest, "entries": filled, "reports": list(documents), "summary": {"states": dict(states)}}


def _check_fields(entry: Mapping[str, Any], where: str) -> None:
    """A status or a lock may be another's: InputError for a field of another kind than `bertc fleet status --json` writes."""
    close = entry.get("accuracy") or {}
    if not isinstance(close, Mapping):
        raise InputError(f"{where}: accuracy is {close!r}, expected a table")
    for name in TEXTS:
        if not isinstance(entry.get(name), str | None):
            raise InputError(f"{where}: {name} is {entry[name]!r}, expected text")
    for name in LISTS:
        if not isinstance(entry.get(f"{name}s"), list | tuple | None):
            raise InputError(f"{where}: {name}s is {entry[f'{name}s']!r}, expected a list")
    numbers = {**{name: entry.get(name) for name in NUMBERS}, **{name: close.get(name) for name in ("relative", "cosine_min")}}
    for name, value in numbers.items():
        if isinstance(value, int | float) and not abs(value) < MOST:
            raise InputError(f"{where}: {name} is no measurement: {str(value)[:20]}")


def _filled(entry: Mapping[str, Any], found: Mapping[str, Any] | None) -> dict[str, Any]:
    """An entry with its state and, as a sentence, the precision that was built instead of the requested one."""
    built = found["precision"]["mode"] if found else entry.get("built_precision")
    why = report.precision_reason(found) if found else entry.get("precision_why")
    other = f"is {built}: {why or 'see its own page'}" if built and built != entry.get("precision", built) else ""
    return {**entry, "state": _state(entry, found), "built_precision": built, "built_instead": other}


def _plain(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry whose lists are sentences: what is shown is one text a field."""
    joined = {name: ", ".join(map(str, entry.get(f"{name}s") or ())) for name in LISTS if not entry.get(name)}
    return {**entry, **{name: text for name, text in joined.items() if text}}


def _state(entry: Mapping[str, Any], found: Mapping[str, Any] | None) -> str:
    state = str(entry.get("state") or ("built" if found else "unknown"))
    return "needs another host" if state == "other-host" else state


def state_colour(state: str) -> str:
    """good, fair or bad: the colour of a state."""
    return "good" if state in GOOD else "bad" if state in BAD else "fair"


def _grouped(entries: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for at, entry in enumerate(entries):
        found.setdefault(str(entry.get("model") or "one model"), []).append(at)
    return found


def _model(doc: ReportView, places: list[int]) -> dict[str, Any]:
    """The entries of one model as a grid: rows are GPUs (and targets, where there are several), columns precisions."""
    entries = doc.get("entries")
    several = len({entries[at].get("target") for at in places}) > 1
    rows: dict[tuple[str, ...], dict[str, list[int]]] = {}
    for at in places:
        entry = entries[at]
        key = (str(entry.get("gpu") or entry.get("sm") or "any"), str(entry.get("target") or "") if several else "")
        rows.setdefault(key, {}).setdefault(str(entry.get("precision") or ""), []).append(at)
    precisions = list(dict.fromkeys(str(entries[at].get("precision") or "") for at in places))
    measured = [
        (entry_label(entries[at]), str(entries[at].get("precision")), error) for at in places if (error := _error(doc, at))
    ]
    plot = drawn.inline({f"m{places[0]}": drawn.error_plot(measured)}) if len(measured) > 1 else {}
    return {"rows": rows, "precisions": precisions, "places": places, "plot": next(iter(plot.values()), None)}


def entry_label(entry: Mapping[str, Any]) -> str:
    """The GPU, else the SM, else the target of an entry."""
    return str(next((entry[key] for key in PLACE if entry.get(key)), "any"))


def _error(doc: ReportView, at: int) -> float | None:
    output = worst(doc, at)
    value = doc.get(*output, "relative") if output else None
    return value if isinstance(value, float) else None


def worst(doc: ReportView, at: int) -> tuple[str | int, ...]:
    """The path of the output that is furthest off in an entry's report, the engine's where it ran, else what
    the status says of it; () where neither does."""
    for kind in ("engine", "graph"):
        outputs = doc.get("reports", at, "verification", kind, "outputs")
        if outputs:
            name = max(outputs, key=lambda each: float(outputs[each]["relative"]))
            return ("reports", at, "verification", kind, "outputs", name)
    return ("entries", at, "accuracy") if doc.get("entries", at, "accuracy") else ()


def fact(doc: ReportView, at: int, key: str) -> tuple[str | int, ...]:
    """The path of an entry's bytes, kernels or seconds: in the status, else in the report, () where neither says it."""
    if isinstance(doc.get("entries", at, key), int | float):
        return ("entries", at, key)
    found: tuple[str | int, ...] = ("reports", at, *IN_REPORT[key])
    return found if doc.get(*found) is not None else ()
