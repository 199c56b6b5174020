"""serving.toml: what a server does, as one value that the command line, the file and `plan-serving` share."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ..core import InputError, allowed_cores, did_you_mean, read_toml, write_text
from .planner import POLICIES, Policy


def _told(description: str, **ranges: Any) -> msgspec.Meta:
    """What `bertc schema` says of a key."""
    return msgspec.Meta(description=description, **ranges)


Count = Annotated[int, msgspec.Meta(ge=1, le=2**20)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=3600)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
SIZES = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class Limits(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What one request may be, and how long it waits."""

    queue: Annotated[Count, _told("Rows that wait, of one model.")] = 1024
    deadline_ms: Annotated[float, _told("What a request waits at most.", gt=0, le=3_600_000)] = 10_000.0
    rows: Annotated[Count, _told("Rows of one request.")] = 1024
    body_bytes: Count = 2**20
    truncate: Annotated[bool, _told("Cut texts that are too long; otherwise they are refused.")] = False


class ModelConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One model: its artifact, relative to the file, and its policy where it is not the server's."""

    artifact: str
    policy: str = ""
    max_rows: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0
    budget: Annotated[int, msgspec.Meta(ge=0, le=2**20)] = 0


class RayConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Replicas on a Ray cluster (`bertc serve --ray`), and what each takes of a node."""

    replicas: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 1
    max_replicas: Annotated[int, _told("Above `replicas`: as many as the load asks for, up to it.", ge=0, le=4096)] = 0
    target_requests: Annotated[float, _told("Under way in a replica, at which one more starts.", gt=0, le=2**20)] = 16.0
    cpus: Annotated[float, _told("Of one replica; 0: workers times threads.", ge=0, le=4096)] = 0.0
    gpus: Annotated[float, _told("Of one replica; 0.25: four share a GPU.", ge=0, le=64)] = 0.0
    accelerator: Annotated[str, _told("The GPU model, as `l4`.")] = ""
    route: Annotated[str, msgspec.Meta(pattern="^/[A-Za-z0-9._/-]*$")] = "/"


class ServingConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A server. `workers` processes of `threads` threads; 0: as many of one thread as this process may use cores."""

    host: str = "127.0.0.1"
    port: Port = 8080
    workers: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 0
    threads: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 0
    policy: Annotated[str, _told(f"How batches are made: {', '.join(POLICIES)}.")] = "cost"
    max_rows: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 32
    max_wait_ms: Annotated[float, msgspec.Meta(ge=0, le=60_000)] = 5.0
    budget: Count = 512
    target_ms: Annotated[float, _told("The cost policy's; 0: none.", ge=0, le=3_600_000)] = 0.0
    worker_timeout_ms: Annotated[float, _told("Of one batch; then the worker is replaced.", gt=0, le=86_400_000)] = 60_000.0
    memory: Annotated[str, _told("Of the models that are loaded at a time, as in 8GB; '': all of them.")] = ""
    share: Annotated[bool, _told("Weights that are equal are held once for all models and workers.")] = True
    limits: Limits = Limits()
    ray: RayConfig = RayConfig()
    models: dict[str, ModelConfig] = {}

    def policy_of(self, model: ModelConfig) -> Policy:
        """The policy of one model."""
        name, rows, budget = model.policy or self.policy, model.max_rows or self.max_rows, model.budget or self.budget
        return Policy(name, rows, self.max_wait_ms / 1e3, budget, self.target_ms / 1e3 or math.inf)

    def cores(self) -> tuple[int, int]:
        """(workers, threads of each)."""
        cores = len(allowed_cores())
        workers = self.workers or max(1, cores // (self.threads or 1))
        return workers, self.threads or max(1, cores // workers)


def read_config(path: Path) -> ServingConfig:
    """Read serving.toml, artifacts relative to its folder. InputError naming the key, what was found and what may be."""
    found: ServingConfig = read_toml(path, ServingConfig)
    check(found, str(path))
    models = {
        name: msgspec.structs.replace(each, artifact=str(path.parent / each.artifact)) for name, each in found.models.items()
    }
    return msgspec.structs.replace(found, models=models)


def check(config: ServingConfig, where: str) -> None:
    """InputError for a policy that is none, a model's name that no URL can hold, or a memory that is no size."""
    named = [("policy", config.policy), *((f"models.{n}.policy", m.policy) for n, m in config.models.items() if m.policy)]
    for key, policy in named:
        if policy not in POLICIES:
            raise InputError(f"{where}: {key} is {policy!r}{did_you_mean(policy, POLICIES)}")
    for name in config.models:
        check_name(name, where)
    memory_bytes(config.memory, where)


def check_name(name: str, where: str) -> None:
    """InputError for a name that cannot stand in a URL and a metric."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise InputError(f"{where}: a model is called {name!r}; names have letters, digits, '.', '_' and '-', up to 100")


def memory_bytes(text: str, where: str = "--memory") -> int | None:
    """`8GB`, `512 MiB` or a number of bytes; None for ''. InputError for what is no size."""
    if not text:
        return None
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if not found or found[2].upper() not in SIZES:
        raise InputError(f"{where}: memory {text!r} is no size; wanted as in 8GB, 512MiB")
    return int(float(found[1]) * SIZES[found[2].upper()])


def write_config(config: ServingConfig, path: Path) -> None:
    """Write serving.toml, without what is as it is by default. Artifacts stand relative to its folder."""
    folder = Path(os.path.abspath(path)).parent
    models = {
        name: {**_changed(each), "artifact": os.path.relpath(os.path.abspath(each.artifact), folder)}
        for name, each in config.models.items()
    }
    plain = {**_changed(config), "models": models}
    for key, table in (("limits", config.limits), ("ray", config.ray)):
        if changed := _changed(table):
            plain[key] = changed
    import tomli_w

    write_text(path, tomli_w.dumps(plain), "serving.toml")


def _changed(value: msgspec.Struct) -> dict[str, object]:
    """The plain fields that are not their defaults."""
    found: dict[str, object] = {}
    for field in msgspec.structs.fields(value):
        now = getattr(value, field.name)
        if isinstance(now, (str, int, float, bool)) and (field.default is msgspec.NODEFAULT or now != field.default):
            found[field.name] = now
    return found
