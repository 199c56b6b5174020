"""Fleet: models x GPU models x precisions, each stage done once, kept by the hash of all that decides it.

config.py          fleet.toml -> entries            plan.py            what is cached, what is not, and why
code.py            the source files of a stage      run.py             tasks in order, on local.py or ray.py
keys.py            what decides a stage, its key    critical_path.py   which task begins first
content_digest.py  the hash of what came out        task.py            the process that does one stage
stages.py          export, fuse, ..., build         outputs.py         from the store to where artifacts are wanted
store.py           finished stages, many writers    lock.py            fleet.lock.json, and drift from it
store_cleaning.py  what a store no longer needs     status.py          the fleet as one document
ci.py              jobs of a CI pipeline            entry_check.py     artifacts against hashes, lock and goldens
travelled.py       checks of files of others        progress_table.py  what a person sees meanwhile
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
