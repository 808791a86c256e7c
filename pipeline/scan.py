"""Which videos lie in a folder: the one walk of `extract_flow FOLDER` and `pipeline import folder`.

A video is a file with a video suffix, or a folder of numbered pictures. Pictures beside videos are their thumbnails.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import InputError
from pipeline.failures import named
from pipeline.paths import fault_of_part
from pipeline.pictures import holds_only_flow, is_picture
from pipeline.text import many
from pipeline.video import VIDEO_SUFFIXES, stem_of


@dataclass(frozen=True)
class Found:
    """What a folder of videos holds, as paths relative to it.

    Attributes:
        videos: video files, and folders of numbered pictures.
        links: links that are not followed -> where they lead.
        unusable: names that cannot be an identity -> the reason.
        empty: videos of zero bytes.
        flow: folders that hold images of flow but no frames.
        is_video: the folder itself holds the numbered pictures of a video, and no other.
    """

    videos: tuple[str, ...]
    links: Mapping[str, str] = field(default_factory=dict)
    unusable: Mapping[str, str] = field(default_factory=dict)
    empty: tuple[str, ...] = ()
    flow: tuple[str, ...] = ()
    is_video: bool = False

    @property
    def outside(self) -> tuple[str, ...]:
        """The links that are not followed."""
        return tuple(self.links)


def scan(root: Path, follow_links: bool = False) -> Found:
    """Every video below a folder.

    Hidden files and folders are ignored. Links that lead outside are listed separately unless `follow_links`; links
    that lead back to a folder they lie in, or nowhere, always.

    Raises:
        InputError: the folder or one below it cannot be read.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder of videos")
    walk = _Walk(root.resolve(), follow_links)
    try:
        is_video = bool(walk.visit(os.fspath(root), "", (os.path.realpath(root),)))
    except OSError as error:
        raise InputError(f"{error.filename or root}: cannot be read: {error.strerror}") from error
    return Found(tuple(walk.videos), walk.links, walk.unusable, tuple(walk.empty), tuple(walk.flow), is_video)


def links_not_followed(found: Found, root: Path, most: int = 5) -> str:
    """A line for the user about the links that were not followed."""
    shown = [f"{path!r} ({leads})" for path, leads in found.links.items()]
    return (
        f"links: {many(len(shown), 'link')} that lead outside {root}, nowhere or in a loop: "
        f"{named(shown, most, quoted=False)} (--follow-links accepts those that lead outside; remove the others)"
    )


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a link to what is not there: without a suffix it may have been a folder of videos."""
    return entry.is_symlink() and not Path(entry.path).exists()


def _are_thumbnails(pictures: Sequence[str], videos: Set[str]) -> bool:
    """Whether a folder's pictures are each named as a video file beside the folder: r1.jpg or r1.mp4.jpg for r1.mp4."""
    return bool(videos) and all(stem_of(Path(name).stem) in videos for name in pictures)


@dataclass
class _Walk:
    """A walk through a folder of videos, and what it has found so far."""

    root: Path
    follow_links: bool
    videos: list[str] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)
    flow: list[str] = field(default_factory=list)

    def visit(self, folder: str, relative: str, above: tuple[str, ...]) -> Sequence[str]:
        """Look into a folder; its pictures if it is itself a video: numbered pictures, and no video in or below it.

        Args:
            folder: its path.
            relative: its path from the root with a slash behind it, "" for the root.
            above: the real paths of it and of the folders that it lies in.
        """
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        beside = {stem_of(entry.name) for entry in ordered if stem_of(entry.name) != entry.name}
        pictures = []
        before = len(self.videos) + len(self.links) + len(self.unusable)
        for entry in ordered:
            if entry.name.startswith("."):
                continue
            if is_picture(entry.name):
                pictures.append(entry.name)
                continue
            # DirEntry.is_dir raises for a link that leads to itself.
            is_folder = Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir()
            suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - Path is slow for many files
            if is_folder or suffix in VIDEO_SUFFIXES or (not suffix and _leads_nowhere(entry)):
                self.take(entry, f"{relative}{entry.name}", is_folder, above, beside)
        if not pictures or len(self.videos) + len(self.links) + len(self.unusable) > before:
            return ()
        if holds_only_flow(pictures):
            self.flow.append(relative.rstrip("/") or ".")
            return ()
        return pictures

    def take(
        self,
        entry: os.DirEntry[str],
        relative: str,
        is_folder: bool,
        above: tuple[str, ...],
        beside: Set[str],
    ) -> None:
        """Sort one entry: a video, a folder to look into, a link that is not followed, or an unusable name.

        Args:
            entry: of the folder.
            relative: its path from the root.
            is_folder: whether it is a folder, or a link to one.
            above: the real paths of the folders that it lies in.
            beside: stems of the video files in the same folder.
        """
        real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(above[-1], entry.name)  # noqa: PTH118
        if fault := fault_of_part(stem_of(entry.name)):
            self.unusable[relative] = fault
        elif entry.is_symlink() and (leads := self.refused(entry.path, real, above)):
            self.links[relative] = leads
        elif not is_folder:
            self.videos.append(relative)
            if entry.stat().st_size == 0:
                self.empty.append(relative)
        else:
            pictures = self.visit(entry.path, f"{relative}/", (*above, real))
            if pictures and not _are_thumbnails(pictures, beside):
                self.videos.append(relative)

    def refused(self, path: str, real: str, above: tuple[str, ...]) -> str:
        """Where a link leads that is not followed; "" for one that is."""
        if real in above:
            return "a loop: leads back to a folder it lies in"
        if real == os.path.abspath(path) or not Path(real).exists():  # noqa: PTH100 - realpath stops in a loop
            return "a loop: leads to itself" if Path(real).is_symlink() else "leads nowhere"
        if not self.follow_links and not Path(real).is_relative_to(self.root):
            return f"leads outside, to {real}"
        return ""
