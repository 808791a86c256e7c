"""Folds over the groups of a training list."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.catalog import Video
from pipeline.groups import training_folds


def random_list(seed: int) -> dict[str, Video]:
    """Videos whose groups lie within a class, or across several, of uneven sizes."""
    random = np.random.default_rng(seed)
    videos = {}
    for number in range(120):
        label = "abcd"[random.integers(4)]
        group = f"{label}{random.integers(6)}" if seed % 2 else f"g{random.integers(7)}"
        videos[f"{label}/{number}"] = Video(f"{label}/{number}", Path("x"), label, group)
    videos["lonely/1"] = Video("lonely/1", Path("x"), "lonely", "one group")
    return videos


def test_folds_divide_the_list_by_whole_groups_and_leave_every_class_to_learn_from() -> None:
    for seed in range(12):
        videos = random_list(seed)
        folds = training_folds(videos, videos, 3)
        held = [video for fold in folds for video in fold]
        assert sorted(held) == sorted(set(videos) - {"lonely/1"})
        for fold in folds:
            rest = set(videos) - set(fold)
            assert {videos[video].label for video in rest} == {video.label for video in videos.values()}
            assert not {videos[video].group for video in fold} & {videos[video].group for video in rest}
            assert 25 <= len(fold) <= 55


def test_folds_do_not_depend_on_the_order_of_the_list() -> None:
    videos = random_list(3)
    assert training_folds(videos, videos, 3) == training_folds(videos, sorted(videos, reverse=True), 3)


def test_a_class_with_one_group_is_held_out_in_no_fold() -> None:
    videos = {f"a/{n}": Video(f"a/{n}", Path("x"), "a", "only") for n in range(4)}
    assert training_folds(videos, videos, 3) == [(), (), ()]
