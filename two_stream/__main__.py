"""two-stream: all commands of the project by one name; each is loaded only when it is called."""

from __future__ import annotations

from typing import NoReturn

import click

from pipeline import shadowed, start
from pipeline.options import CONTEXT, LazyCommand, LazyGroup
from two_stream import __version__

COMMANDS = {
    "pipeline": LazyCommand("pipeline.__main__", "main", "Datasets, shards and what became of them."),
    "extract-flow": LazyCommand(
        "extract_flow.__main__", "main", "Frames and optical flow of videos into shards."
    ),
    "train": LazyCommand("train.__main__", "main", "Train a network of either stream from shards."),
    "evaluate": LazyCommand(
        "evaluate.__main__", "main", "Score and fuse trained streams, report; classify new videos."
    ),
    "slurm": LazyCommand("slurm.__main__", "main", "Every stage as a SLURM array job."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="two-stream")
def main() -> None:
    """Two-stream action recognition: videos to optical flow, to trained networks, to a report.

    Each command is also a module, as in python -m train; two-stream train does the same, and runs in any folder, one
    with a train.py of its own included. Completion for bash (likewise zsh and fish):

        eval "$(_TWO_STREAM_COMPLETE=bash_source two-stream)"
    """


def command() -> NoReturn:
    """The installed command."""
    shadowed.refuse("extract_flow", "train", "evaluate", "slurm")
    start.run(main, "two-stream")


if __name__ == "__main__":
    command()
