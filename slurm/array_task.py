"""Which stream and split an array task of training or scoring works on; the job scripts ask for it."""

from __future__ import annotations

import os
from collections.abc import Mapping

import click

from pipeline.errors import InputError, command_errors
from pipeline.options import CONTEXT
from pipeline.paths import check_name
from pipeline.runs import STREAMS, chain_run_name, default_run_name, fold_run_name
from slurm.chain import pairs


def run_options(environment: Mapping[str, str]) -> list[str]:
    """The options that name the run of an array task, for `python -m train` and `python -m evaluate score`.

    Task i takes the i-th of `slurm.chain.pairs`. The values are passed on as they are: the stage's command checks them.

    Args:
        environment: SLURM_ARRAY_TASK_ID; SPLITS and STREAMS, words with spaces between them (default: split 1, both
            streams); RUN, what the runs' names begin with (default: the trainer's own names); FOLD, the fold of FOLDS
            (default: 3) that the run leaves out of its training list, for held-out scores.

    Raises:
        InputError: the array has more tasks than there are pairs, RUN cannot be part of a run's name, or FOLD is none
            of the FOLDS.
    """
    streams = environment.get("STREAMS", "").split() or list(STREAMS)
    splits = environment.get("SPLITS", "").split() or ["1"]
    index, there = environment.get("SLURM_ARRAY_TASK_ID", ""), pairs(splits, streams)
    if not index.isdecimal():
        raise InputError(f"SLURM_ARRAY_TASK_ID={index!r}: expected the number of an array task")
    if int(index) >= len(there):
        raise InputError(
            f"array task {index}: STREAMS={' '.join(streams)!r} and SPLITS={' '.join(splits)!r} make {len(there)} "
            f"pairs: submit with --array=0-{len(there) - 1}, or name more splits"
        )
    split, stream = there[int(index)]
    options = ["--stream", stream, "--split", split]
    prefix, fold = environment.get("RUN"), environment.get("FOLD")
    if not (prefix or fold):
        return options
    if not split.isdecimal():
        raise InputError(f"SPLITS={' '.join(splits)!r}: expected numbers of splits")
    name = chain_run_name(prefix, stream, int(split)) if prefix else default_run_name(stream, int(split))
    if fold:
        folds = environment.get("FOLDS") or "3"
        if not (fold.isdecimal() and folds.isdecimal() and 1 <= int(fold) <= int(folds)):
            raise InputError(
                f"FOLD={fold!r}, FOLDS={folds!r}: expected the number of one of the folds, from 1"
            )
        name = fold_run_name(name, int(fold), int(folds))
    return [*options, f"--run={check_name(name, 'run')}"]


@click.command(context_settings=CONTEXT)
@command_errors
def command() -> None:
    """Print the options that name this array task's run, one word per line.

    Reads SLURM_ARRAY_TASK_ID, SPLITS, STREAMS, RUN, FOLD and FOLDS from the environment.
    """
    for word in run_options(os.environ):
        click.echo(word)
