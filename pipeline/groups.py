"""Groups: the person or the source that several videos share, from their names; a split keeps a group on one side."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping

from pipeline.catalog import Split, Video
from pipeline.errors import InputError

UCF_GROUP = re.compile(r"_(g\d+)_c\d+$")
# <source>_<class>_<visible>_<camera>_np<people>_<view>_<quality>_<number>
HMDB_PROPERTIES = r"_[a-z]+_[a-z]+_np\d+_[a-z]+_[a-z]+_\d+$"
GroupRule = Callable[[str, str], str]
"""(class, stem) -> group"""
FOLDS = 3


def ucf_group(label: str, stem: str) -> str:
    """v_Archery_g01_c02 -> Archery/g01; a stem of another form is its own group. Groups number within their class."""
    found = UCF_GROUP.search(stem)
    return f"{label}/{found[1] if found else stem}"


def hmdb_group(label: str, stem: str) -> str:
    """The source video, within its class: what precedes `_<class>_<properties>` in the stem.

    The three official splits keep all clips of a source on one side within each class, though not across classes.
    """
    found = re.search(f"^(.*)_{re.escape(label)}{HMDB_PROPERTIES}", stem)
    return f"{label}/{found[1] if found else stem}"


def pattern_group(pattern: str) -> GroupRule:
    """A rule that takes the group from the stem: the pattern's first group, else its whole match, else the stem."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"--group-pattern {pattern!r} is not a valid regular expression: {error}") from error

    def group(label: str, stem: str) -> str:
        found = compiled.search(stem)
        if not found:
            return f"{label}/{stem}"
        return (found[1] if compiled.groups else found[0]) or f"{label}/{stem}"

    return group


def fold_splits(ids: Iterable[str], group: GroupRule) -> dict[int, Split]:
    """Three splits; split k tests on the groups number k, k+3, ... in the order of their names.

    A class that a split would only test on is trained on there instead, as is one with a single group in all splits.
    """
    groups = {video_id: group(*video_id.split("/")) for video_id in sorted(ids)}
    fold_of = {name: index % FOLDS + 1 for index, name in enumerate(sorted(set(groups.values())))}
    folds: dict[str, set[int]] = defaultdict(set)
    for video_id, name in groups.items():
        folds[video_id.split("/")[0]].add(fold_of[name])
    splits = {}
    for number in range(1, FOLDS + 1):
        held_out = {
            video_id
            for video_id, name in groups.items()
            if fold_of[name] == number and len(folds[video_id.split("/")[0]]) > 1
        }
        train = tuple(video_id for video_id in groups if video_id not in held_out)
        splits[number] = Split(number, train, tuple(sorted(held_out)))
    return splits


def training_folds(videos: Mapping[str, Video], ids: Iterable[str], folds: int) -> list[tuple[str, ...]]:
    """The videos to hold out in each fold of a training list, so that a network can score what it did not learn from.

    Whole groups are dealt to folds, the largest first, each to the fold that holds the smallest share of its classes.
    Where that would leave a fold's network without any video of a class, as for a class with a single group, the videos
    of that class are learned from in that fold, and held out in none.

    Args:
        videos: by id.
        ids: the training list.
        folds: how many, at least 2.

    Returns:
        For each fold the videos to hold out, sorted; the folds are disjoint, and may be empty where groups are few.
    """
    members: dict[str, list[Video]] = defaultdict(list)
    total: Counter[str] = Counter()
    for video in (videos[name] for name in ids):
        members[video.group].append(video)
        total[video.label] += 1
    dealt: list[list[Video]] = [[] for _ in range(folds)]
    counts: list[Counter[str]] = [Counter() for _ in range(folds)]
    for group in sorted(members, key=lambda name: (-len(members[name]), name)):
        labels = sorted({video.label for video in members[group]})
        shares = [sum(count[label] / total[label] for label in labels) for count in counts]
        fold = min(range(folds), key=lambda number: (shares[number], len(dealt[number]), number))
        dealt[fold] += members[group]
        counts[fold].update(video.label for video in members[group])
    return [
        tuple(sorted(video.id for video in held if count[video.label] < total[video.label]))
        for held, count in zip(dealt, counts, strict=True)
    ]
