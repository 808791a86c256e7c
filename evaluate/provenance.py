"""How a report's figures were made: read from score files, checkpoints, shards and the command, never assumed."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import click
import numpy as np
import sklearn
import torch

from evaluate.results import SplitResult
from pipeline.catalog import Dataset
from pipeline.request import Request, request_of
from pipeline.shard import ShardAddress, open_shard
from pipeline.version import VERSION

HOME = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class ScoredSet:
    """A shard set that was scored.

    Attributes:
        name: of the set.
        request: how its shards were made.
        video: the one whose shard was read for it.
    """

    name: str
    request: Request
    video: str


@dataclass(frozen=True)
class Provenance:
    """What a report says about how it was made, apart from its runs.

    Attributes:
        command: as it was typed; empty where the report was written by a program.
        made: when.
        software: name -> version.
        origin: what the dataset was imported from; see `catalog.Dataset`.
        lists: split -> number of videos of its training and test list.
        sets: the shard sets that were scored and are still there.
    """

    command: str = ""
    made: str = ""
    software: Mapping[str, str] = field(default_factory=dict)
    origin: Mapping[str, str | int] = field(default_factory=dict)
    lists: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    sets: Sequence[ScoredSet] = ()


def provenance(
    dataset: Dataset, results: Sequence[SplitResult], shards: Mapping[str, Mapping[str, ShardAddress]]
) -> Provenance:
    """What this process knows about how some results were made.

    Args:
        dataset: whose videos they are about.
        results: one for each split.
        shards: shard set -> its shards by video, of every set that was scored.

    Raises:
        InputError: the shard from which the making of its set is read is damaged.
    """
    return Provenance(
        command_line(),
        f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        software(),
        dataset.origin,
        {
            result.split: (
                len(dataset.split(result.split).train),
                len(dataset.split(result.split).test),
            )
            for result in results
        },
        [
            found
            for name, addresses in shards.items()
            if (found := _scored_set(name, addresses, results)) is not None
        ],
    )


def command_line() -> str:
    """The running command, as typed in a shell; empty where there is none, as in a notebook."""
    context = click.get_current_context(silent=True)
    return "" if context is None else f"{context.find_root().info_name} {shlex.join(sys.argv[1:])}".strip()


def software() -> dict[str, str]:
    """Versions of this project, with the commit where it runs from its checkout, and of the libraries that it
    computes with.
    """
    return {
        "two-stream": VERSION + _commit(),
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "NumPy": np.__version__,
        "scikit-learn": sklearn.__version__,
    }


def _commit() -> str:
    if not (HOME / ".git").exists():  # another project's repository may lie around an installed copy
        return ""
    try:
        run = subprocess.run(
            ["git", "-C", str(HOME), "describe", "--always", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return f" (commit {run.stdout.strip()})"


def _scored_set(
    name: str, shards: Mapping[str, ShardAddress], results: Sequence[SplitResult]
) -> ScoredSet | None:
    """How the first scored video's shard was made; None where the scores outlived their shards."""
    scored = (
        video
        for result in results
        for stream in result.streams
        if stream.shards == name
        for video in stream.videos
    )
    video = next((video for video in scored if video in shards), None)
    if video is None:
        return None
    with open_shard(shards[video]) as shard:
        return ScoredSet(name, request_of(shard), video)
