"""Which videos the command line names: files, folders of pictures, folders of videos, and lists of all three."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

from extract_flow.clip import VideoTask
from pipeline.errors import InputError
from pipeline.paths import OutputPaths
from pipeline.scan import links_not_followed, scan
from pipeline.text import some, typed
from pipeline.video import stem_of

LIST_MARK = "@"


def find_videos(
    paths: Iterable[Path],
    output: OutputPaths,
    *,
    lists: Iterable[Path] = (),
    follow_links: bool = False,
    keep_suffix: bool = False,
) -> list[VideoTask]:
    """The videos that paths name: files, folders of numbered pictures, and all of both below other folders.

    A file's identity is its stem, a folder of pictures' its name; what lies below a folder, or is listed by a relative
    path, keeps its relative path.

    Args:
        paths: what is named; `@FILE` is a list.
        output: where the shards go.
        lists: files that name one path a line, relative to the list's folder or else to the working folder.
        follow_links: look into links that lead outside a folder too.
        keep_suffix: keep the suffix of files in identities, so that a.avi and a.mp4 are two videos.

    Raises:
        InputError: no such path, a folder that cannot be read, a link that is not followed, nothing found, or two
            videos whose shards would have one name.
    """
    found: dict[str, Path] = {}
    for path, name in _named(paths, lists):
        for video, file in _videos_at(path, name, follow_links, keep_suffix):
            if video in found and found[video].resolve() != file.resolve():
                raise InputError(
                    f"{file} and {found[video]} would both become {output.shard(video)}: rename one of them, extract "
                    "them into different folders, or use --keep-suffix if their suffixes differ"
                )
            found[video] = file
    return [VideoTask(video, path, output.shard(video)) for video, path in sorted(found.items())]


def _named(paths: Iterable[Path], lists: Iterable[Path]) -> Iterator[tuple[Path, PurePath]]:
    """Each path with the name that its identity comes from."""
    listed = list(lists)
    for path in paths:
        if path.exists():
            yield path, PurePath(path.absolute().name)
        elif str(path).startswith(LIST_MARK):
            listed.append(Path(str(path).removeprefix(LIST_MARK)))
        else:
            raise InputError(f"{path}: no such file or folder")
    for path in listed:
        yield from _read_list(path)


def _read_list(path: Path) -> Iterator[tuple[Path, PurePath]]:
    """The paths of a list, each with the name that its identity comes from."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{path}: expected UTF-8 text, found UTF-16: save it as UTF-8")
    text = data.decode("utf-8-sig", "surrogateescape")
    # Lines end as on Unix, on Windows or on an old Macintosh.
    lines = [(number, line) for number, line in enumerate(re.split("\r\n|\n|\r", text), 1) if line.strip()]
    if not lines:
        raise InputError(f"{path}: expected one path a line, found none")
    for number, line in lines:
        try:
            existing, line = next(
                (
                    (candidate, name)
                    for name in (line, line.strip())  # a name may end in a space, though few do
                    for candidate in (path.parent / name, Path(name))
                    if candidate.exists()
                ),
                (None, line),
            )
        except (OSError, ValueError) as error:  # a name that no file can have
            raise InputError(f"{path}:{number}: expected a path, found {line[:200]!r}") from error
        if existing is None:
            raise InputError(f"{path}:{number}: {_why_missing(line, path.parent)}")
        inside = PurePath(line)
        if inside.is_absolute() and inside.is_relative_to(path.parent.absolute()):
            inside = inside.relative_to(path.parent.absolute())
        plain = not inside.is_absolute() and ".." not in inside.parts
        yield existing, inside if plain else PurePath(inside.name)


def _why_missing(line: str, folder: Path) -> str:
    """What is wrong with a line of a list that names nothing that is there."""
    slashes = line.strip().replace("\\", "/")
    if slashes != line.strip() and any((root / slashes).exists() for root in (folder, Path())):
        return f"wanted {line[:200]!r}, found {slashes[:200]!r}: write / between folders"
    plain = re.sub(r"(?<=\S)(?:[\s,]+[0-9]{1,9}){1,3}$", "", line.strip())
    if plain != line.strip() and any((root / plain).exists() for root in (folder, Path())):
        return (
            f"expected one path a line, found numbers after {plain[:200]!r}: lists with labels are for "
            "`python -m pipeline import folder --lists`"
        )
    return f"no such file or folder: {line[:200]!r}, neither in {folder.absolute()} nor in {Path.cwd()}"


def _videos_at(
    path: Path, name: PurePath, follow_links: bool, keep_suffix: bool
) -> Iterator[tuple[str, Path]]:
    """Identity and path of the videos that one path names."""

    def identity(file: PurePath) -> str:
        return (file if keep_suffix else file.with_name(stem_of(file.name))).as_posix()

    if not path.is_dir():
        # Any file that is named is taken for a video, whatever its suffix.
        yield (name if keep_suffix else name.with_suffix("")).as_posix(), path
        return
    found = scan(path, follow_links)
    if found.is_video:
        yield name.as_posix(), path
        return
    if found.links:
        raise InputError(links_not_followed(found, path))
    videos = (*found.videos, *found.unusable)  # a name that cannot be stored costs that video only
    if not videos:
        flow = f" but flow in {some(found.flow)} (see {typed('pipeline')} import-flow)" if found.flow else ""
        raise InputError(
            f"{path}: expected a video or a folder of numbered pictures in or below it, found none{flow}"
        )
    for below in videos:
        yield below if (path / below).is_dir() else identity(PurePath(below)), path / below
