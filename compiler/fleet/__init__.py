"""Fleet: models x GPU models x precisions, each stage done once, kept by the hash of all that decides it.

gpus.py      the table of GPU models           plan.py      what is cached, what is not, and why
config.py    fleet.toml -> entries             run.py       tasks in order, whoever runs them: local.py or ray.py
code.py      which files code is made of       task.py      the process that does one stage
keys.py      what decides a stage, its key     outputs.py   from the store to where artifacts are wanted
contents.py  what came out, its digest         lock.py      fleet.lock.json, and drift from it
stages.py    export, fuse, build               status.py    what a person or a report wants to know
store.py     finished stages, many writers     checking.py  artifacts against hashes, lock and goldens
cleaning.py  what a store no longer needs      board.py     progress; ci.py: jobs of a CI pipeline
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
