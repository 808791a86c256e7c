"""Opening video files: which of a file's streams is the video, and what its header promises.

The reader and the probe of `pipeline import` both open files here, so that they agree.
"""

from __future__ import annotations

import collections
import contextlib
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import InputError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

PROBED_PACKETS = 500
"""Packets examined to distinguish a film from a single picture, where a file has several video streams."""
PICTURE_FORMATS = frozenset(("image2", "image2pipe"))


PICTURE_BRANDS = frozenset(("avif", "heic", "heix", "mif1"))
"""Brands (ftyp) of ISO files that hold a still picture."""
STATED_DURATION = frozenset(("matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2", "flv", "asf", "rm", "mxf"))
"""Formats that state a duration; FFmpeg estimates that of others from the file itself."""
ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
"""GUID of the object of an ASF file (WMV) that states its duration."""
TS_PACKETS = (188, 192, 204)
"""Bytes of a packet of a transport stream: plain, with time stamps (M2TS), with error correction."""
TS_SYNC, TS_PROBED = 0x47, 5
"""The byte that each of them begins with, behind the stamp of M2TS; how many are looked at."""
FRAMES_SHORT = 3
"""By how many frames a header may overstate without a note: XviD's B-frames and HMDB-51's index have one to three."""
SECONDS_SHORT = 0.5
PART_SHORT = 0.05
"""By how much a header may overstate the duration without a note: the larger of these seconds and this share."""


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
        if _is_picture(container):
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
        raise ContainerError(f"is not a video that can be read: {text[:1].lower()}{text[1:]}") from error


def _is_picture(container: InputContainer) -> bool:
    name = container.format.name
    brand = container.metadata.get("major_brand", "")
    return name in PICTURE_FORMATS or name.endswith("_pipe") or brand in PICTURE_BRANDS


def pixel_note(stream: VideoStream) -> str:
    """What to report about pixels that are not square, or ""; they are kept as they are coded."""
    ratio = stream.sample_aspect_ratio
    if not ratio or ratio == 1:
        return ""
    width, height = stream.codec_context.width, stream.codec_context.height
    return (
        f"its pixels are not square ({ratio.numerator}:{ratio.denominator}): {width}x{height} pixels are shown as "
        f"{round(width * ratio)}x{height}, and kept as they are coded; --size makes them square"
    )


def shortfall(opened: Opened, path: Path, decoded: int, last: float | None) -> tuple[str, ...]:
    """A note where the header promised clearly more than the file held, as after a torn download; else nothing.

    Args:
        opened: the file, read to its end.
        path: of it.
        decoded: frames that came out.
        last: time stamp of the last of them in seconds.
    """
    stream, container = opened.stream, opened.container
    if stream.frames > 0:
        allowed = max(FRAMES_SHORT, PART_SHORT * stream.frames)
        if decoded - stream.frames > allowed:
            return (f"its header says {stream.frames} frames, it holds {decoded}",)
        # An edit list leaves out frames that are there.
        if (
            stream.frames - decoded > allowed
            and stream.frames - count_packets(path, [stream.index]).total() > allowed
        ):
            return (f"its header says {stream.frames} frames, it holds {decoded}",)
        return ()
    if cut := _cut_off(container, path):
        return (cut,)
    promised = container.duration / 1e6 if container.duration else 0.0
    if stream.duration and stream.time_base:
        promised = float(stream.duration * stream.time_base)
    if container.format.name not in STATED_DURATION or last is None:
        return ()
    if container.format.name == "asf":
        promised = _asf_duration(path)
    allowed = max(SECONDS_SHORT, PART_SHORT * promised)
    # Sound may last longer than the pictures.
    if promised - last > allowed and promised - (end := _end(path)) > allowed:
        return (f"its header says {promised:.2f} s, it holds {end:.2f} s ({decoded} frames)",)
    return ()


def _cut_off(container: InputContainer, path: Path) -> str:
    """How a file of a format that states no duration shows that its end is missing, or ""."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(TS_PROBED * max(TS_PACKETS))
        file.seek(max(0, size - 64))
        tail = file.read()
    name = container.format.name
    if name == "mpegts" and (packet := _ts_packet(head)) and size % packet:
        return "it ends inside a packet of the transport stream: its last frame may be damaged"
    if name == "gif" and not tail.rstrip(b"\0").endswith(b";"):
        return "it ends without the end mark of a GIF: frames may be missing"
    if name == "yuv4mpegpipe" and _last_packet_end(path) < size:
        return "it ends inside a frame, which was left out"
    return ""


def _ts_packet(head: bytes) -> int:
    """Bytes of a packet of the transport stream that begins so, 0 where that is not seen: ISO 13818-1 2.4.3.2."""
    for size in TS_PACKETS:
        first = 4 if size == 192 else 0
        syncs = head[first::size]
        if len(syncs) > 1 and set(syncs) == {TS_SYNC}:
            return size
    return 0


def _choose(container: InputContainer, path: Path) -> tuple[VideoStream, tuple[str, ...]]:
    """The stream that is the video, and a note that names others that might have been.

    As FFmpeg does, a stream that is flagged default goes first, then the one with the most pixels, then the one with
    the most frames. Cover pictures and timed thumbnails do not count, and a single frame only if there is no film.
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
    counts = count_packets(path, [stream.index for stream in decodable], PROBED_PACKETS)

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
        f"stream {_name(chosen)} was taken; the file holds "
        f"{'other videos' if len(others) > 1 else 'another video'} too: "
        f"stream {' and stream '.join(_name(stream) for stream in others)}"
    )
    return chosen, (note,)


def _name(stream: VideoStream) -> str:
    context = stream.codec_context
    return f"{stream.index} ({context.name}, {context.width}x{context.height})"


def count_packets(path: Path, indices: Sequence[int], most: float = math.inf) -> collections.Counter[int]:
    """Packets of each stream in the file, or among the first few."""
    counts: collections.Counter[int] = collections.Counter()
    with _open(path) as container:
        for packet in container.demux([container.streams[index] for index in indices]):
            counts[packet.stream_index] += packet.size > 0
            if counts.total() >= most:
                break
    return counts


def _asf_duration(path: Path) -> float:
    """Seconds that the header of an ASF file states, 0 if none; FFmpeg ignores it where the file has another size."""
    with path.open("rb") as file:
        header = file.read(1 << 16)
    found = header.find(ASF_PROPERTIES)
    if found < 0 or len(header) < found + 92:
        return 0.0
    # After the object's GUID and size: file id, file size, date, packets, then these (ASF specification 3.2).
    play_time, _, preroll, flags = struct.unpack_from("<QQQI", header, found + 64)
    live = flags & 1  # being sent: nothing is stated
    return 0.0 if live else max(0.0, play_time / 1e7 - preroll / 1e3)


def _last_packet_end(path: Path) -> int:
    """The byte behind the last frame of a Y4M file."""
    end = 0
    with _open(path) as container:
        for packet in container.demux(video=0):
            if packet.size and packet.pos is not None:
                end = packet.pos + packet.size
    return end


def _end(path: Path) -> float:
    """The second at which the file's last packet of any stream ends."""
    from av.error import FFmpegError

    end = 0.0
    with _open(path) as container, contextlib.suppress(FFmpegError):
        for packet in container.demux():
            if packet.pts is not None and packet.time_base:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    return end
