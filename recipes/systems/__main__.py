"""python -m bertc.recipes.systems NAME -o OUT: train a system, build it, judge what was built, and write system.json."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bertc.core import BertcError

from . import names, system


@click.command(help=__doc__)
@click.argument("name", type=click.Choice(names()))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The folder to write.")
@click.option("--seconds", default=480.0, show_default=True, type=click.FloatRange(min=1), help="CPU seconds of the training.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option("--quick", is_flag=True, help="Seconds of training on few data, for tests: to see that it learns.")
@click.option("--target", "targets", multiple=True, help="In place of system.toml's targets; repeatable.")
@click.option("--precision", "precisions", multiple=True, help="In place of system.toml's precisions; repeatable.")
def main(
    name: str, out: Path, seconds: float, seed: int, quick: bool, targets: tuple[str, ...], precisions: tuple[str, ...]
) -> None:
    """Exit 1 where a bar is missed, and say which."""
    from . import running

    try:
        import torch

        torch.set_num_threads(1)
        budget = running.Budget(seconds, seed, quick)
        found = running.run(system(name), out, budget, targets=targets, precisions=precisions, say=click.echo)
    except ModuleNotFoundError as error:
        if (error.name or "bertc").partition(".")[0] == "bertc":  # ours: a fault, not a package that is missing
            raise
        click.echo(f"error: this needs {error.name}: pip install 'bertc[systems]'", err=True)
        sys.exit(3)
    except BertcError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    click.echo((out / "table.md").read_text("utf-8"))
    sys.exit(1 if found["misses"] else 0)


if __name__ == "__main__":
    main()
