"""Decoding video: gray and RGB frames at the requested size, upright, in one pass and bounded memory.

What a header claims is never trusted: the frames are counted while they are decoded, sizes come from the first
decoded frame, and an error keeps the frames before it. Damage that the decoder conceals is an error too
(`pipeline.damage`). Timestamps decide nothing unless a part of the video was asked for in seconds. A folder of numbered
pictures counts as a video (`pipeline.pictures`).

Gray is the luma of the decoded frame on the full range 0..255 (a limited-range source is stretched; RGB sources use
the BT.601 weights), so the same scene gives the same gray whichever range its file uses. Scaling is bilinear, with the
filter widened when shrinking, in swscale's bit-exact mode: every machine makes the same pixels of the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import stat
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline import container, damage, jpeg_scan
from pipeline.errors import InputError
from pipeline.memory import ReusedMemory
from pipeline.pictures import PICTURE_SUFFIXES, list_pictures, number_gaps

if TYPE_CHECKING:
    import av
    from av.video.reformatter import VideoReformatter

VIDEO_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("3gp", "asf", "avi", "divx", "flv", "gif", "m2ts", "m4v", "mjpeg", "mkv", "mov", "mp4", "mpeg"),
        *("mpg", "mts", "ogv", "ts", "vob", "webm", "wmv", "y4m"),
    )
)
Bytes = npt.NDArray[np.uint8]
FOLDER_RATE = Fraction(25)
"""Frames per second of a folder of pictures, which records none."""
MOST_PIXELS = 1 << 26
"""Largest frame that is decoded or made, 8192 x 8192: a damaged header must not exhaust memory."""
LONGEST_SIDE = 32000
"""Largest side of a stored frame: a JPEG holds 65,535 rows, and flow is stored x over y."""


class VideoError(InputError):
    """A video that cannot be decoded, or not to its end.

    Attributes:
        frames: source frames that were decoded before the error.
    """

    def __init__(self, path: Path, reason: str, frames: int = 0) -> None:
        after = f" after {frames} frame{'s' * (frames != 1)}" if frames else ""
        super().__init__(f"{path}: {reason}{after}")
        self.reason = reason + after
        self.frames = frames


class Frames(NamedTuple):
    """Consecutive frames: gray uint8[n,H,W] and, if asked for, rgb uint8[n,H,W,3]."""

    gray: npt.NDArray[np.uint8]
    rgb: npt.NDArray[np.uint8] | None


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which frames of a video are used, and at what size.

    Attributes:
        short_side: the smaller side in pixels, the other to the nearest integer; None keeps the source's.
        size: exact (width, height) instead; overrides `short_side`.
        every: keep every Nth frame, counted from the first one at or after `start`.
        start, end: seconds from the video's first frame; frames at `start` <= time < `end` are used.
    """

    short_side: int | None = 256
    size: tuple[int, int] | None = None
    every: int = 1
    start: float = 0.0
    end: float | None = None

    def __post_init__(self) -> None:
        if self.short_side is not None and self.short_side < 1:
            raise ValueError(f"short side: expected at least 1 pixel, found {self.short_side}")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size: expected at least 1x1 pixel, found {self.size[0]}x{self.size[1]}")
        if self.every < 1:
            raise ValueError(f"every: expected 1 or more, found {self.every}")
        if not 0 <= self.start < math.inf:
            raise ValueError(f"start: expected 0 seconds or more, found {self.start}")
        if self.end is not None and not self.end > self.start:
            raise ValueError(f"end: expected more than the start of {self.start} s, found {self.end} s")

    def target(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) that an upright source of the given size is scaled to."""
        if self.size is not None:
            return self.size
        if self.short_side is None:
            return width, height
        scale = self.short_side / min(width, height)
        # floor(x + 0.5): the nearest integer, halves up; Python's round takes halves to even.
        return math.floor(width * scale + 0.5), math.floor(height * scale + 0.5)


class VideoReader:
    """One decode pass over a video file or a folder of pictures; a context manager.

    Attributes:
        path: the file or folder.
        width, height: of the frames that `read` returns.
        source_width, source_height: of the source's first frame, upright.
        fps: frames per second of the selected frames (the source's rate divided by `every`).
        header_frames: frames of the source by its header; None if it does not state the number.
        decoded: source frames decoded so far, selected or not.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        selection: Selection | None = None,
        *,
        rgb: bool = False,
        on_frame: Callable[[], None] | None = None,
    ) -> None:
        """Open a video and decode its first frame.

        Args:
            path: a video file, or a folder of numbered pictures.
            selection: frames and size; by default all, smaller side 256.
            rgb: whether `read` returns RGB frames too.
            on_frame: called after each decoded source frame, so that a supervisor can tell slow from stuck.

        Raises:
            VideoError: missing, empty, not a video, no decodable frame, or unreasonable sizes.
        """
        from av.video.reformatter import Interpolation, VideoReformatter

        self.path = Path(path)
        self.selection = selection or Selection()
        self.header_frames: int | None = None
        self.decoded = 0
        self._notes: list[str] = []
        self._rgb = rgb
        self._on_frame = on_frame
        self._opened: container.Opened | None = None
        self._gray_memory, self._rgb_memory = ReusedMemory(), ReusedMemory()
        # A reformatter keeps the scaler of one conversion; two through one would rebuild it at every frame.
        self._to_gray, self._to_rgb = VideoReformatter(), VideoReformatter()
        self._scaling = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
        self._error: VideoError | None = None
        try:
            if self.path.is_dir():
                source, rate = self._pictures(), FOLDER_RATE
            else:
                source, rate = self._stream()
        except (container.ContainerError, OSError) as error:
            raise VideoError(self.path, _plain(error)) from error
        self.fps = float(rate / self.selection.every)
        self._selected = self._select(source, float(rate))
        try:
            self._first = next(self._selected, None)
            if self._first is None:
                raise self._error or VideoError(self.path, self._why_nothing(), self.decoded)
            turn = _orientation(self._first)
            self.source_width, self.source_height = turn.upright(self._first.width, self._first.height)
            self.width, self.height = self.selection.target(self.source_width, self.source_height)
            if max(self.width, self.height) > LONGEST_SIDE or self.width * self.height > MOST_PIXELS:
                raise VideoError(
                    self.path,
                    f"{self.source_width}x{self.source_height} pixels would become {self.width}x{self.height}, "
                    f"over the limit of {LONGEST_SIDE} a side and {MOST_PIXELS:,} in all; "
                    "choose another --size or --short-side",
                )
        except BaseException:
            self.close()
            raise

    def read(self, count: int) -> Frames:
        """Up to `count` further frames; fewer only at the end of the video.

        Frames before an error are returned first; the next call raises it.

        Raises:
            VideoError: the video cannot be decoded further; `frames` is how far it got.
        """
        gray = self._gray_memory((count, self.height, self.width))
        rgb = self._rgb_memory((count, self.height, self.width, 3)) if self._rgb else None
        filled = 0
        while filled < count and (frame := self._next()) is not None:
            self._convert(frame, self._to_gray, gray[filled])
            if rgb is not None:
                self._convert(frame, self._to_rgb, rgb[filled])
            filled += 1
        if filled == 0 and self._error is not None:
            raise self._error
        return Frames(gray[:filled], None if rgb is None else rgb[:filled])

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._opened is not None:
            self._opened.container.close()
            self._opened = None

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _next(self) -> av.VideoFrame | None:
        if self._first is not None:
            frame, self._first = self._first, None
            return frame
        return next(self._selected, None)

    def _convert(self, frame: av.VideoFrame, reformatter: VideoReformatter, target: Bytes) -> None:
        """Scale a frame and turn it upright into `target`: gray uint8[H,W], or RGB uint8[H,W,3]."""
        import cv2

        turn = _orientation(frame)
        # A quarter turn swaps the sides, here back again.
        width, height = turn.upright(self.width, self.height)
        pixels = "gray" if target.ndim == 2 else "rgb24"
        # swscale makes pixels of four bytes faster where the width is odd, and the same ones.
        four_bytes = pixels == "rgb24" and width % 2 == 1
        image = reformatter.reformat(
            frame,
            width,
            height,
            "0rgb" if four_bytes else pixels,
            interpolation=self._scaling,
            threads=1,
        )
        plane: Any = image.planes[0]
        if four_bytes:
            # From the second byte on; rows are padded, so there is one behind the last pixel.
            padded = np.ndarray((height, width, 4), np.uint8, plane, 1, (plane.line_size, 4, 1))
            if turn == Turn():
                cv2.cvtColor(padded, cv2.COLOR_RGBA2RGB, dst=target)
                return
            rows = padded[..., :3]
        else:
            samples = target[0, 0].size
            rows = np.frombuffer(plane, np.uint8).reshape(height, plane.line_size)[:, : width * samples]
        target[:] = turn.apply(rows.reshape(height, width, *target.shape[2:]))

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about the source; complete once all frames were read."""
        return tuple(self._notes)

    def _select(self, source: Iterator[av.VideoFrame], rate: float) -> Iterator[av.VideoFrame]:
        """The frames that the selection asks for; a decoding error is kept for `read` and ends them."""
        from av.error import FFmpegError

        start, end = self.selection.start, self.selection.end
        clock = _Clock(rate) if start > 0 or end is not None else None
        inside = 0
        frame = None
        try:
            for frame in source:
                self.decoded += 1
                if self._on_frame is not None:
                    self._on_frame()
                if clock is not None:
                    # Times are multiples of the stream's time base: a microsecond hides their rounding.
                    time = clock.time(frame.time) + 1e-6
                    if end is not None and time >= end:
                        return
                    if time < start:
                        continue
                if inside % self.selection.every == 0:
                    yield frame
                inside += 1
            if self._opened is not None and frame is not None:
                self._notes.extend(container.shortfall(self._opened, self.path, self.decoded, frame.time))
        except VideoError as error:
            self._error = error
        except damage.Damaged as error:
            self._error = VideoError(self.path, str(error), self.decoded)
        except (FFmpegError, OSError, ValueError, MemoryError) as error:
            self._error = VideoError(self.path, f"cannot be decoded: {_plain(error)}", self.decoded)

    def _why_nothing(self) -> str:
        if self.decoded:
            end = "" if self.selection.end is None else f" and before {self.selection.end:g} s"
            return f"no frame lies at or after {self.selection.start:g} s{end}; the video ends"
        return "the file holds no frame"

    def _stream(self) -> tuple[Iterator[av.VideoFrame], Fraction]:
        """The frames of a video file, and their rate."""
        self._opened = opened = container.open_video(self.path)
        stream = opened.stream
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > MOST_PIXELS:
            self.close()
            raise VideoError(
                self.path,
                f"its header claims {width}x{height} pixels, more than the {MOST_PIXELS:,} that are allowed",
            )
        self.header_frames = stream.frames if stream.frames > 0 else None
        self._notes.extend(opened.notes)
        if (note := container.pixel_note(stream)) and self.selection.size is None:
            self._notes.append(note)
        rate = stream.average_rate or stream.guessed_rate or stream.base_rate or FOLDER_RATE
        return damage.sound_frames(opened.container, stream), Fraction(rate) if rate > 0 else FOLDER_RATE

    def _pictures(self) -> Iterator[av.VideoFrame]:
        """The pictures of a folder as frames."""
        try:
            pictures = list_pictures(self.path)
        except InputError as error:
            raise VideoError(self.path, str(error).removeprefix(f"{self.path}: ")) from error
        if not pictures:
            raise VideoError(
                self.path,
                "a folder counts as a video if it holds numbered pictures "
                f"({', '.join(sorted(PICTURE_SUFFIXES))}); none found",
            )
        self.header_frames = len(pictures)
        self._notes.extend(number_gaps(pictures))
        return (self._picture(path) for path in pictures)

    def _picture(self, path: Path) -> av.VideoFrame:
        import av
        import cv2

        try:
            data = path.read_bytes()
        except OSError as error:
            raise VideoError(
                self.path, f"{path.name} cannot be read: {_plain(error)}", self.decoded
            ) from error
        if not data:
            raise VideoError(self.path, f"{path.name} is empty", self.decoded)
        if data.startswith(b"\xff\xd8") and (fault := jpeg_scan.fault(data)):
            raise VideoError(self.path, f"{path.name} is damaged: {fault}", self.decoded)
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error as error:
            raise VideoError(
                self.path, f"{path.name} cannot be read: {_plain(error)}", self.decoded
            ) from error
        if image is None:
            raise VideoError(self.path, f"{path.name} is not a picture that can be decoded", self.decoded)
        return av.VideoFrame.from_ndarray(np.asarray(image, np.uint8), format="bgr24")


class _Clock:
    """Seconds since the first frame, never running back, whatever the stamps do.

    Where a stamp steps back, or is missing, the frame follows the one before at the video's rate, and later stamps
    count from there; where they come back to an earlier count, it is taken up again.
    """

    def __init__(self, rate: float) -> None:
        self._usual = 1 / rate
        self._offsets: list[float] = []
        self._last: float | None = None

    def time(self, stamp: float | None) -> float:
        """The time of the next frame, whose stamp this is."""
        if self._last is None:
            self._offsets = [-stamp] if stamp is not None else []
            self._last = 0.0
            return 0.0
        following = [
            stamp + offset for offset in self._offsets if stamp is not None and stamp + offset > self._last
        ]
        if following:
            self._last = min(following)
        else:
            self._last += self._usual
            if stamp is not None:
                self._offsets = [*self._offsets[-3:], self._last - stamp]
        return self._last


class Turn(NamedTuple):
    """What makes a stored frame upright: transpose, then flip rows, then columns."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def upright(self, width: int, height: int) -> tuple[int, int]:
        return (height, width) if self.transpose else (width, height)

    def apply(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        if self.transpose:
            image = image.swapaxes(0, 1)
        return image[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


def turn_of_matrix(matrix: npt.NDArray[np.int32]) -> Turn:
    """The turn that a display matrix asks for: ISO 14496-12 6.2.2, where x' = a x + c y, y' = b x + d y.

    Angles between quarter turns go to the nearest one; nothing is resampled.
    """
    a, b, _, c, d = (int(value) for value in matrix[:5])
    if max(abs(a), abs(d)) >= max(abs(b), abs(c)):
        return Turn(False, flip_rows=d < 0, flip_columns=a < 0)
    return Turn(True, flip_rows=b < 0, flip_columns=c < 0)


def _orientation(frame: av.VideoFrame) -> Turn:
    side_data: Any = frame.side_data  # iterates over entries, though annotated as over names
    for data in side_data:
        if data.type.name == "DISPLAYMATRIX":
            return turn_of_matrix(np.frombuffer(data, np.int32, 9))
    return Turn()


def stem_of(name: str) -> str:
    """A file name without its video suffix; other dots stay, so a.b.avi is a.b and the folder a.b is itself."""
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and f"{dot}{suffix}".lower() in VIDEO_SUFFIXES else name


def source_bytes(path: Path) -> int:
    """Bytes of a video file, or of the pictures of a folder; VideoError if it cannot be read."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            return sum(picture.stat().st_size for picture in list_pictures(path))
        return status.st_size
    except OSError as error:
        raise VideoError(path, f"cannot be read: {(error.strerror or str(error)).lower()}") from error


def source_digest(path: Path) -> str:
    """SHA-256 in hex of a video file; of a folder, over the names and digests of its pictures in order."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for picture in list_pictures(path):
        digest.update(picture.name.encode(errors="surrogateescape") + b"\0" + source_digest(picture).encode())
    return digest.hexdigest()


def _plain(error: Exception) -> str:
    """An error's own message, without the error number and the path, which our message names already."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text[:1].lower() + text[1:]
