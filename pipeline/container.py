"""Opening video files: which of a file's streams is the video, and what its header promises.

The reader and the probe of `pipeline import` both open files here, so that they agree.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import InputError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

PROBED_PACKETS = 500
"""Packets that are looked at to tell a film from a single picture, where a file has several video streams."""
PICTURE_FORMATS = frozenset(("image2", "image2pipe"))


class ContainerError(InputError):
    """A file that is not a video that can be read; the message does not name the file."""


class Opened(NamedTuple):
    """An open file, the stream that is its video, and what a user should know about the others."""

    container: InputContainer
    stream: VideoStream
    notes: tuple[str, ...]


def open_video(path: Path) -> Opened:
    """Open a video file and choose its video stream; the caller closes the container.

    Raises:
        ContainerError: missing, empty, not a video, a picture, or without a stream that can be decoded.
    """
    if not path.exists():
        raise ContainerError("no such file")
    if not path.is_file():
        raise ContainerError("neither a file nor a folder of pictures")
    if path.stat().st_size == 0:
        raise ContainerError("the file is empty")
    container = _open(path)
    try:
        if container.format.name in PICTURE_FORMATS or container.format.name.endswith("_pipe"):
            raise ContainerError("is a picture, not a video: give the folder that holds the frames")
        stream, notes = _choose(container, path)
    except BaseException:
        container.close()
        raise
    return Opened(container, stream, notes)


def _open(path: Path) -> InputContainer:
    import av
    from av.error import FFmpegError

    try:
        # file: and the white list keep a name from being read as another protocol, and a playlist from leading to other
        # hosts. Titles and the like may be in any encoding, or in none.
        return av.open(
            f"file:{path.absolute()}", options={"protocol_whitelist": "file"}, metadata_errors="replace"
        )
    except (FFmpegError, OSError, ValueError) as error:
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ContainerError(
            f"is not a video that can be read: {text[:1].lower()}{text[1:]}"
        ) from error


def _choose(container: InputContainer, path: Path) -> tuple[VideoStream, tuple[str, ...]]:
    """The stream that is the video, and a note that names others that might have been.

    As FFmpeg does, a stream that is flagged default goes first, then the one with the most pixels, then the one with the
    most frames. Cover pictures and timed thumbnails are no candidates, and a single frame is one only if there is no
    film.
    """
    from av.stream import Disposition

    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = container.streams.video
    candidates = [stream for stream in streams if not stream.disposition & pictures]
    if not candidates:
        raise ContainerError(
            "holds no video stream" + (", only a cover picture or thumbnails" if streams else "")
        )
    decodable = [stream for stream in candidates if stream.codec_context is not None]
    if not decodable:
        raise ContainerError("its video is in a format that this build of FFmpeg cannot decode")
    if len(decodable) == 1:
        return decodable[0], ()
    counts = _packets(path, [stream.index for stream in decodable])

    def rank(stream: VideoStream) -> tuple[bool, bool, int, int]:
        frames = max(stream.frames, counts[stream.index])
        return (
            frames > 1,
            bool(stream.disposition & Disposition.default),
            stream.codec_context.width * stream.codec_context.height,
            frames,
        )

    chosen = max(decodable, key=rank)  # the first of equals
    others = [stream for stream in decodable if stream is not chosen]
    note = (
        f"stream {_name(chosen)} was taken; the file holds {'other videos' if len(others) > 1 else 'another video'} too: "
        f"stream {' and stream '.join(_name(stream) for stream in others)}"
    )
    return chosen, (note,)


def _name(stream: VideoStream) -> str:
    context = stream.codec_context
    return f"{stream.index} ({context.name}, {context.width}x{context.height})"


def _packets(path: Path, indices: Sequence[int]) -> collections.Counter[int]:
    """Packets of each stream among the first few of the file."""
    counts: collections.Counter[int] = collections.Counter()
    with _open(path) as container:
        wanted = [container.streams[index] for index in indices]
        for packet in container.demux(wanted):
            counts[packet.stream_index] += packet.size > 0
            if counts.total() >= PROBED_PACKETS:
                break
    return counts
