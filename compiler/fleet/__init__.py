"""Fleet: models x GPU models x precisions, each stage done once, kept by the hash of all that decides it.

gpus.py            the table of GPU models          plan.py            what is cached, what is not, and why
config.py          fleet.toml -> entries            run.py             tasks in order, on local.py or ray.py
code.py            the source files of a stage      critical_path.py   which task begins first
keys.py            what decides a stage, its key    task.py            the process that does one stage
content_digest.py  the hash of what came out        outputs.py         from the store to where artifacts are wanted
stages.py          export, fuse, ..., build         lock.py            fleet.lock.json, and drift from it
store.py           finished stages, many writers    status.py          the fleet as one document
store_cleaning.py  what a store no longer needs     entry_check.py     artifacts against hashes, lock and goldens
ci.py              jobs of a CI pipeline            progress_table.py  what a person sees meanwhile
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
