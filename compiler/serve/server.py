"""A server: artifacts, their workers, queues and fronts, from start to drain. The HTTP application stands over it."""

from __future__ import annotations

import dataclasses
import logging
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..artifact import Artifact, open_artifact
from ..core import VERSION, BertcError, InputError, Progress
from .config import ModelConfig, ServingConfig, memory_bytes
from .cost import CostModel, read_cost, write_cost
from .measure import measure, padding_error
from .memory import in_memory
from .metrics import Metrics
from .model import ServedModel
from .pool import ProcessPool
from .scheduler import Lane, Scheduler
from .trial import judge
from .worker import limits_of

LOG = logging.getLogger("bertc.serve")


class Server:
    """The models of a ServingConfig over one pool of worker processes."""

    def __init__(self, config: ServingConfig, log: Progress | None = None) -> None:
        self.config, self.log = config, log or Progress()
        self.workers, self.threads = config.cores()
        self.pool = ProcessPool(self.workers, self.threads, memory_bytes(config.memory, "the configuration"), config.share)
        self.metrics = Metrics()
        self.scheduler = Scheduler(self.pool, self.metrics)
        self.pool.on_death = self.metrics.death
        self.pool.on_load, self.pool.on_unload = self.metrics.loaded, self.metrics.unloaded
        self.encoders: weakref.WeakValueDictionary[Any, Any] = weakref.WeakValueDictionary()
        self.models: dict[str, ServedModel] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.stopping = False
        self._loads = 0

    @property
    def ready(self) -> bool:
        """Whether requests are taken: it does not stop, and a worker lives."""
        return bool(self.models) and not self.stopping and self.pool.alive > 0

    async def start(self) -> None:
        """Check and load every artifact, and measure those whose times are not known. Raises BertcError naming the artifact."""
        if not self.config.models:
            raise InputError("no artifact to serve")
        opened = {name: open_artifact(Path(each.artifact)) for name, each in self.config.models.items()}
        with self.log.stage(f"start {self.workers} workers of {self.threads} threads"):
            try:
                await self.pool.start({name: found.path for name, found in opened.items()})
            except RuntimeError as error:
                raise BertcError(str(error)) from error
        self._tell_memory()
        for name, found in opened.items():
            self._add(name, found, *await self._lane(name, name, found))

    async def _lane(self, name: str, lane: str, found: Artifact) -> tuple[ServedModel, Lane]:
        """The front and the queue of a model under the name that the pool knows."""
        front = ServedModel.of_artifact(name, found, limits_of(self.pool.limits[lane]), self.scheduler, self.encoders)
        error = await padding_error(found, self.pool, lane, front.batching)
        front.lane, (front.batching, said) = lane, judge(front.batching, error)
        if said:
            self.log.note(f"{name}: {said}")
        config = self.config.models.get(name, ModelConfig(""))
        queue = self.config.limits.queue
        return front, Lane(lane, front.batching, await self._cost(lane, found), self.config.policy_of(config), queue)

    async def _cost(self, lane: str, found: Artifact) -> CostModel:
        cost, why = read_cost(found)
        if cost is not None and (cost.workers, cost.threads) == (self.workers, self.threads):
            return cost
        if same := self._same_shape(lane):
            self.log.note(f"{found.path.name}: times of {same}, whose graph differs in the values of weights alone")
            return self.scheduler.lanes[same].cost
        if cost is not None:
            why = f"its times were measured with {cost.workers} workers of {cost.threads} threads"
        self.log.note(f"{found.path.name}: {why}: measured now")
        made = await measure(found, self.pool, lane, self.workers, self.threads, self.log)
        try:
            self.log.note(f"times kept at {write_cost(found, made)}")
        except BertcError as error:
            self.log.note(f"times not kept: {error}")
        return made

    def _same_shape(self, lane: str) -> str | None:
        """A model whose times are known and hold for this one."""
        shape = self.pool.models[lane].get("shape")
        return next((each for each in self.scheduler.lanes if shape and self.pool.models[each].get("shape") == shape), None)

    def _tell_memory(self) -> None:
        """What is not shared, and what would make a budget no budget."""
        reasons: dict[str, list[str]] = {}
        for name, facts in self.pool.models.items():
            if facts.get("why"):
                reasons.setdefault(facts["why"], []).append(name)
        for why, names in reasons.items():
            self.log.note(f"{', '.join(names)}: each worker holds weights of its own: {why}")
        if self.pool.store is not None and in_memory(self.pool.store):
            place = self.pool.store.parent
            self.log.note(f"shared weights lie in {place}, which is memory itself: unloading frees little; set TMPDIR to a disk")

    def _add(self, name: str, found: Artifact, front: ServedModel, queue: Lane) -> None:
        self.scheduler.add(queue)
        self.models[name], self.artifacts[name] = front, found

    async def reload(self, name: str) -> bool:
        """Load the artifact that now lies on disk beside the old one and switch to it; False where it is the same.

        The old one answers until the new one is ready, and stays when the new one cannot be loaded (BertcError).
        """
        old, path = self.models[name], self.artifacts[name].path
        found = open_artifact(path)
        if found.manifest == self.artifacts[name].manifest:
            return False
        self._loads += 1
        lane = f"{name}@{self._loads}"
        await self.pool.replace(name, path, lane)
        front, queue = await self._lane(name, lane, found)
        if queue.cost.per_row is None:  # the same routes and tokenizer: what the server itself does stays as it was
            queue.cost = dataclasses.replace(queue.cost, per_row=self.scheduler.lanes[old.lane].cost.per_row)
        self._add(name, found, front, queue)
        await self._retire(old)
        LOG.info("%s: switched to the artifact that lies at %s now", name, path)
        return True

    async def _retire(self, old: ServedModel) -> None:
        await old.unused()  # who has it may tokenize, and come to the queue after it
        await self.scheduler.empty(old.lane)
        await self.pool.drop(old.lane)
        old.close()

    def target_of(self, name: str) -> str:
        """The target of a model's artifact."""
        return self.artifacts[name].target

    def describe(self) -> Mapping[str, Any]:
        """What is served, with its limits and policies."""
        models = {}
        for name, found in self.artifacts.items():
            lane = self.scheduler.lanes[self.models[name].lane]
            encoder = self.models[name].encoder
            models[name] = {
                "target": found.target,
                "precision": found.precision,
                "task": found.task,
                "policy": lane.policy.name,
                "max_tokens": encoder.max_length if encoder else None,
                "padded": lane.batching.length is not None,
                "packed": lane.cost.packed,
                "loaded": lane.name in self.pool.ledger.loaded,
                "bytes": self.pool.ledger.size(lane.name),
            }
        limits = self.config.limits
        return {
            "version": VERSION,
            "models": models,
            "workers": self.workers,
            "threads": self.threads,
            "memory": self._memory(),
            "limits": {name: getattr(limits, name) for name in limits.__struct_fields__},
        }

    def _memory(self) -> Mapping[str, Any]:
        """What the loaded models take, as weighed at the start; 0 where nothing was weighed: one worker of one model."""
        ledger = self.pool.ledger
        return {
            "budget": ledger.budget,
            "bytes": ledger.bytes(),
            "loaded": len(ledger.loaded),
            "shared": sum(bool(facts.get("saved")) for facts in self.pool.models.values()),
        }

    async def close(self) -> None:
        """Answer what waits, then end the workers."""
        self.stopping = True
        if self.pool.alive:
            await self.scheduler.drain()
        await self.pool.close()
        for model in self.models.values():
            model.close()
