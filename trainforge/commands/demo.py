"""`trainforge demo`: the whole main job on this machine, from push to result."""

from __future__ import annotations

import click


@click.command()
@click.option(
    "--keep", is_flag=True, help="Keep the folder with the project and all that the programs wrote."
)
@click.option("--timeout", default=300, show_default=True, help="Give up after this many seconds.")
def demo(keep: bool, timeout: int) -> int:
    """See a push train on two executors, on this machine alone.

    Starts a sender and two executors in a temporary folder, pushes a project that learns handwritten digits
    on two nodes, shows what happens, and removes everything again. Nothing of yours is touched.
    """
    from trainforge.demo import run_demo

    return run_demo(keep=keep, timeout=timeout)
