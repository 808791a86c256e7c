"""python -m slurm: submit the whole chain of a dataset to SLURM, and show its state."""

from __future__ import annotations

import click

from pipeline import start
from pipeline.options import CONTEXT, LazyCommand, LazyGroup

COMMANDS = {
    "submit": LazyCommand(
        "slurm.submit", "command", "Submit the chain flow -> verify -> train -> score -> fuse."
    ),
    "status": LazyCommand(
        "slurm.state", "command", "Show the state of the last chain and the command that resumes it."
    ),
    "array-task": LazyCommand(
        "slurm.array_task", "command", "Print the options that name this array task's run."
    ),
}


@click.command(cls=LazyGroup, lazy=COMMANDS, context_settings=CONTEXT)
def main() -> None:
    """Every stage as a SLURM array job: flow, verify, train, score, fuse."""


if __name__ == "__main__":
    start.run(main, "python -m slurm")
