"""Fleet: models x GPU models x precisions, each stage done once, kept by the hash of all that decides it.

gpus.py     the table of GPU models           store.py   finished stages by key, safe for many writers
config.py   fleet.toml -> entries             plan.py    what is cached, what is not, and why
keys.py     what a stage depends on           run.py     tasks in order, whoever runs them: local.py or ray.py
stages.py   export, fuse, build               lock.py    fleet.lock.json, and drift from it
task.py     the process that does one stage   status.py  what a person or a report wants to know
"""
