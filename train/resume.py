"""Whether a run can resume: from its newest readable checkpoint, if that is of the same configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, OtherFormat, Unreadable
from pipeline.request import Request
from pipeline.runs import RunPaths, RunRecord
from train.checkpoint import Checkpoint, load_checkpoint
from train.recipe import Recipe


def find_resumable(
    run: RunPaths,
    recipe: Recipe,
    record: RunRecord,
    requests: Mapping[str, Request],
    resume: str,
    say: Callable[[str], None],
) -> Path | None:
    """The newest readable checkpoint of a run; None if the run has no checkpoint.

    Args:
        run: the run.
        recipe, record, requests: the configuration to resume with, and how the shards were made.
        resume: "auto", or "no" to refuse a run that has checkpoints.
        say: called with a warning for each checkpoint that cannot be read.

    Raises:
        Unreadable: the system does not let a checkpoint be read.
        OtherFormat: a later version of this program wrote one.
        InputError: a different configuration (the differences are listed), no checkpoint that can be read, or one
            where resuming was not wanted.
    """
    found = run.checkpoints()
    if not found:
        return None
    if resume == "no":
        raise InputError(
            f"{run.folder} holds {len(found)} checkpoint(s): leave out --resume no to resume, remove the folder to "
            "start again, or choose another --run"
        )
    for path in found:
        try:
            checkpoint = load_checkpoint(path, optimiser=True)
        except (Unreadable, OtherFormat):
            raise  # it may be good, and resuming from an older one would overwrite it
        except InputError as error:
            say(f"warning: {error}; trying the checkpoint before it")
            continue
        if differences := configuration_differences(checkpoint, recipe, record, requests):
            raise InputError(
                f"{run.folder} was trained with another configuration:",
                *(f"  {line}" for line in differences),
                "repeat its options to resume, or choose another --run",
            )
        return path
    raise InputError(f"{run.folder}: none of its {len(found)} checkpoints can be read; choose another --run")


def configuration_differences(
    checkpoint: Checkpoint, recipe: Recipe, record: RunRecord, requests: Mapping[str, Request]
) -> list[str]:
    """One line per value of the recipe, the run's record or its shards that differs from the checkpoint's."""
    before = settings(checkpoint.recipe, checkpoint.run)
    now = settings(recipe.as_dict(), record)
    lines = [
        f"{key}: {before.get(key, 'not set')} there, {now.get(key, 'not set')} asked for"
        for key in {**before, **now}
        if before.get(key) != now.get(key)
    ]
    for dataset, request in requests.items():
        # Checkpoints of version 1 do not record how their shards were made.
        if dataset in checkpoint.requests:
            differences = checkpoint.requests[dataset].differences(request)
            lines += [f"shards of {dataset}: {line}" for line in differences]
    return lines


def settings(recipe: Mapping[str, Any], record: RunRecord) -> dict[str, Any]:
    """Recipe and record as one mapping; the record's stream is that of the run."""
    values = record.as_dict()
    sets = values.pop("shard_sets")
    return {**recipe, **values, **{f"shard set of {name}": shard_set for name, shard_set in sets.items()}}
