"""What a person, a CI job or a report page wants to know of a fleet, as one document.

`document` gives (and `bertc fleet status --json` prints):

    format    1
    fleet, out, store, lock   paths;   bertc, tools   versions
    counts    {state: entries}
    stages    [{slot, model, stage ("export" | "fuse" | "quantise"), state, reasons, seconds, key, digest}]
    entries   [{name, model, gpus, sms, target, precision, host (GPU model that must build it, or null), state, reasons,
                seconds (of its last stage, last time), bytes, kernels, accuracy, stages, built_precision, precision_why, path,
                key, digest, locked}]

`state` is built (in `out`, of these very inputs), cached (in the store, not in `out`), new, stale (with the reasons), failed
(with the error), pending (a stage before it is not finished), building, or other-host (needs a host with another GPU).
`accuracy` is null or {verdict, engine_executed, engine_reason, cosine_min, relative}; `stages` the seconds of each stage as
report.json has them; `built_precision` what was built in place of `precision`, and `precision_why` the reason (int8 that gains
nothing is fp16). All these describe what lies in `out`, stale or not, and are null where nothing does. `locked`: whether
fleet.lock.json names this key; null where there is no such file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..core import VERSION, machine
from . import keys, lock, outputs, plan
from .config import Fleet
from .plan import Step
from .store import Store

FORMAT = 1
STATES = ("built", "cached", "building", "new", "stale", "failed", "pending", "other-host")


def status_document(fleet: Fleet, store: Store, steps: Sequence[Step] | None = None) -> dict[str, Any]:
    """The document above, of these steps, or of a plan made now."""
    steps = plan.plan_fleet(fleet, store) if steps is None else steps
    locked = lock.read(fleet)
    entries = [_entry(step, fleet, store, locked) for step in steps if step.task.entry]
    counts = Counter(entry["state"] for entry in entries)
    return {
        "format": FORMAT,
        "fleet": str(fleet.path),
        "out": str(fleet.out),
        "store": str(fleet.store),
        "lock": str(fleet.lock),
        "bertc": VERSION,
        "tools": machine.versions(),
        "counts": {state: counts[state] for state in STATES if counts[state]},
        "stages": [_stage(step, store) for step in steps if not step.task.entry],
        "entries": entries,
    }


def _stage(step: Step, store: Store) -> dict[str, Any]:
    return {
        "slot": step.task.slot,
        "model": step.task.slot.partition("/")[0],
        "stage": step.task.stage,
        "state": _state(step, store),
        "reasons": list(step.reasons),
        "seconds": step.seconds,
        "key": step.key,
        "digest": store.record(step.key)["digest"] if step.state == "cached" and step.key else None,
    }


def _entry(step: Step, fleet: Fleet, store: Store, locked: Mapping[str, Any]) -> dict[str, Any]:
    entry = step.task.entry
    assert entry is not None
    path = fleet.place_of(entry.name)
    state, known = _state(step, store), outputs.artifact_facts(path)
    stage = _stage(step, store)
    if state == "cached" and step.key:
        why = outputs.difference(store, step.key, path)
        state = state if why else "built"
        stage["reasons"] += [f"in its place {why}"] if why and path.exists() else []
    return {
        "name": entry.name,
        "model": entry.model,
        "gpus": list(entry.gpus),
        "sms": list(entry.spec.sms),
        "target": entry.spec.name,
        "precision": entry.precision,
        "host": entry.host,
        "state": state,
        "reasons": stage["reasons"],
        "seconds": stage["seconds"],
        **{name: known.get(name) for name in ("bytes", "kernels", "accuracy", "stages")},
        "built_precision": known.get("precision"),
        "precision_why": known.get("precision_why"),
        "path": str(path) if known else None,
        "key": stage["key"],
        "digest": stage["digest"],
        "locked": locked["entries"].get(entry.name, {}).get("key") == step.key if locked else None,
    }


def _state(step: Step, store: Store) -> str:
    return "building" if step.state != "cached" and step.key and store.is_being_made(step.key) else step.state


def precision_notes(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which entries were built in another precision than the entry's, and why, in sentences."""
    other = [entry for entry in entries if entry["built_precision"] not in (None, entry["precision"])]
    return [
        f"{entry['name']} is {entry['built_precision']}: {entry['precision_why'] or 'see its report.html'}" for entry in other
    ]


def timed_form_notes(steps: Sequence[Step]) -> list[str]:
    """Which stages choose by the clock of the machine that they run on, in sentences."""
    sentence = "{0}: int8 takes the form that is fastest on the machine that quantises; int8-static and int8-dynamic fix the form"
    mine = [s.task for s in steps if s.task.stage == "quantise"]
    return [sentence.format(task.slot) for task in mine if keys.options("quantise", task.recipe, task.spec)["timed"]]


def shared_plan_notes(steps: Sequence[Step]) -> list[str]:
    """Which GPU models run the same bytes, in sentences."""
    plans: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for entry in (step.task.entry for step in steps):
        if entry and len(entry.gpus) > 1:
            found = plans.setdefault((", ".join(entry.spec.sms), entry.gpus), [])
            found += [entry.precision] if entry.precision not in found else []
    sentence = "{0} share one plan for {1} ({2})"
    return [sentence.format(", ".join(gpus), sms, ", ".join(precisions)) for (sms, gpus), precisions in plans.items()]
