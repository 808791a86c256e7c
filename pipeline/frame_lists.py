"""Lists of frames as mmaction2 and TSN read them, beside exported frames: `python -m pipeline export --dataset`.

Every line is `folder count label`, the label counted from 0. mmaction2's `tools/data/build_file_list.py` gives folders
relative to the frames' root and counts RGB frames; TSN's `tools/build_file_list.py` gives whole paths, and a list each
for RGB frames and flow.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pipeline import atomic
from pipeline.catalog import Dataset


class Counts(NamedTuple):
    """RGB frames and flows that were exported of a video; 0 where there are none."""

    frames: int
    flows: int


def counts_of_images(folder: Path) -> Counts:
    """What a folder of exported images holds."""
    return Counts(*(sum(1 for _ in folder.glob(pattern)) for pattern in ("img_*.jpg", "flow_x_*.jpg")))


def frame_lists(dataset: Dataset, exported: Mapping[str, Counts], root: Path, tsn: bool) -> dict[str, str]:
    """The lists of every split by the name of their file, and `classInd.txt`, which names the labels.

    A split's test list is named `val`, as both tools do. Videos that were not exported are left out, and so are names
    with white space, which neither tool can read; an empty list is not written.

    Args:
        dataset: whose splits.
        exported: what was exported, by video.
        root: the folder that holds a folder per video.
        tsn: TSN's lists as well; it counts images from 1.
    """
    found = {"classInd.txt": "".join(f"{number} {name}\n" for number, name in enumerate(dataset.classes, 1))}
    whole = root.absolute()
    for number, split in dataset.splits.items():
        for side, videos in (("train", split.train), ("val", split.test)):
            listed = [video for video in videos if video in exported and not unreadable(video)]
            kinds = {
                f"{dataset.name}_{side}_split_{number}_rawframes.txt": ("", "frames"),
                f"{dataset.name}_{side}_split_{number}_rawframes_flow.txt": ("", "flows"),
            }
            if tsn:
                kinds |= {
                    f"{dataset.name}_rgb_{side}_split_{number}.txt": (f"{whole}/", "frames"),
                    f"{dataset.name}_flow_{side}_split_{number}.txt": (f"{whole}/", "flows"),
                }
            for name, (before, what) in kinds.items():
                lines = [
                    f"{before}{video} {count} {dataset.label(video)}\n"
                    for video in listed
                    if (count := getattr(exported[video], what))
                ]
                if lines:
                    found[name] = "".join(lines)
    return found


def unreadable(video: str) -> bool:
    """Whether a name would fall apart in a list, whose columns are separated by white space."""
    return len(video.split()) != 1


def write_lists(dataset: Dataset, exported: Mapping[str, Counts], root: Path, tsn: bool) -> list[Path]:
    """Write `frame_lists` into the folder of the frames; returns their paths."""
    texts = frame_lists(dataset, exported, root, tsn)
    for name, text in texts.items():
        with atomic.writing(root / name) as temporary:
            temporary.write_bytes(text.encode("utf-8", "surrogateescape"))
    return [root / name for name in texts]
