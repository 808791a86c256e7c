"""Decoding so that damage which the decoder conceals does not pass for sound frames.

A decoder fills what it cannot decode from its neighbours and continues. What gives that away differs by codec, and was
measured on sound and damaged files of each (`benchmarks/damage.py`, docs/how-to/odd-videos.md):

- H.264, MPEG-4, MPEG-1, MPEG-2 and their relatives flag the frame. Messages alone say nothing: sound cuts have them.
- HEVC flags nothing, but writes a message when a slice contradicts itself.
- Sectors of zeros in H.264 and HEVC are found by `pipeline.nal_units`; decoders may read them as a picture.
- Motion JPEG is counted through by `pipeline.jpeg_scan`.
- VP9 is decoded with libvpx where PyAV has it, which checks where each tile's data ends; FFmpeg's own decoder does not.
- A transport stream that lost packets continues within a group of pictures; one that was joined begins a new one.
"""

from __future__ import annotations

import collections
import functools
import itertools
import logging
import math
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from pipeline import jpeg_scan, nal_units

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

NO_START = re.compile("first frame is no keyframe")
TELLING = {
    "hevc": re.compile(
        r"ref with POC|RPS|undecodable NALU|slice|CABAC|cu_qp|ref_idx|entry_point", re.IGNORECASE
    ),
    "mjpeg": re.compile(
        r"overread|error (?:y=|count|dc)|bad vlc|^sos: |decode_sos|dqt: |huffman table|process SOS"
    ),
    "gif": re.compile(r"LZW decode failed"),
    **dict.fromkeys(("mpeg4", "h263", "flv", "msmpeg4v1", "msmpeg4v2", "msmpeg4", "wmv1", "wmv2"), NO_START),
}
"""Messages of a codec's decoder that mean damage; others are about side information, and sound files give them too."""
NAL_CODECS = frozenset(("h264", "hevc"))
CONCEALING = "concealing"
"""How the decoders that flag frames begin the message that they are doing so."""
MOST_HELD = 64
"""Frames that wait until a frame under suspicion comes out; a decoder reorders at most 16."""
SCANNED_AHEAD = 8
"""Packets of Motion JPEG that a thread scans at a time, ahead of the decoder."""
LOST = re.compile(r"Packet corrupt \(stream = (\d+), dts = (-?\d+)\)")


class Damaged(Exception):
    """The frames that came before are sound; what follows is not."""


@functools.cache
def listen() -> None:
    """Have FFmpeg's messages come through PyAV's log, so that `Capture` sees them.

    What nobody captures goes to the logger `libav`, and nowhere unless the program handles that.
    """
    import av.logging

    logging.getLogger("libav").addHandler(logging.NullHandler())
    av.logging.set_skip_repeated(False)  # the same message may come from another file
    av.logging.set_level(av.logging.INFO)


def sound_frames(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    """All frames of a stream in the order of display, up to the first that is damaged.

    Raises:
        Damaged: the next frame is damaged, or depends on one that is.
        FFmpegError, OSError, ValueError: the file cannot be read or decoded further.
    """
    from av.logging import ERROR, Capture

    listen()
    decoder = _decoder(stream)
    decoder.thread_count = 1  # work is spread over videos; threads would only add waiting
    decoder.copy_opaque = True  # a frame carries the number of its packet
    codec = stream.codec_context.name
    watch = _Watch()
    prefix = nal_units.length_bytes(codec, stream.codec_context.extradata) if codec in NAL_CODECS else 0
    packets = _packets(container, stream)
    for number, (packet, fault) in enumerate(_scanned(packets) if codec == "mjpeg" else packets):
        if fault:
            watch.damaged(number, fault)
        elif codec in NAL_CODECS and nal_units.is_broken(bytes(packet), prefix):
            watch.damaged(number, "damaged: its data holds zeros that no encoder writes")
        # A new object each: PyAV finds it by its identity, and small numbers are the same object everywhere.
        packet.opaque = (number,)
        with Capture() as messages:
            frames = decoder.decode(packet)
        for level, name, text in messages:
            if codec in TELLING and name == codec and TELLING[codec].search(text):
                watch.damaged(number, text.strip().removeprefix("warning: "))
            elif level <= ERROR or text.startswith(CONCEALING):
                watch.suspect(number)
        for frame in frames:
            yield from watch.pass_on(frame, number)
    yield from watch.finish()


def _scanned(packets: Iterator[tuple[av.Packet, str]]) -> Iterator[tuple[av.Packet, str]]:
    """The packets of Motion JPEG, with what is wrong with the data of each, too.

    A thread scans the next few while the decoder is busy with those before.
    """
    from av.error import FFmpegError

    failure: Exception | None = None
    waiting: collections.deque[tuple[list[tuple[av.Packet, str]], Future[list[str]]]] = collections.deque()
    with ThreadPoolExecutor(1, "jpeg-scan") as pool:
        while True:
            batch: list[tuple[av.Packet, str]] = []
            try:
                batch.extend(itertools.islice(packets, SCANNED_AHEAD) if failure is None else ())
            except (FFmpegError, OSError, ValueError) as error:
                failure = error  # raised where it belongs: behind the packets before it
            waiting.append((batch, pool.submit(_scan, [bytes(packet) for packet, _ in batch])))
            if len(waiting) < 2:
                continue
            ready, found = waiting.popleft()
            if not ready:
                break
            for (packet, lost), fault in zip(ready, found.result(), strict=True):
                yield packet, fault or lost
    if failure is not None:
        raise failure


def _scan(packets: Sequence[bytes]) -> list[str]:
    faults = [jpeg_scan.fault(packet) if packet else None for packet in packets]
    return [f"the JPEG data is damaged: {fault}" if fault else "" for fault in faults]


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[tuple[av.Packet, str]]:
    """The packets of a stream, and whether data of each is missing, or just before it in a transport stream: "" if not.

    A loss counts only if no new group of pictures begins behind it: where recordings were joined, one does.
    """
    from av.logging import Capture

    packets: Iterator[av.Packet] = container.demux(stream)
    if container.format.name != "mpegts":
        # Other containers drop what is incomplete, or flag sound packets too. Torn files of Cinepak keep their last
        # frame, in which its decoder leaves the picture before in place of what is missing.
        flags = container.format.name == "avi" and stream.codec_context.name != "cinepak"
        for packet in packets:
            yield packet, "the file ends inside this frame" if flags and packet.is_corrupt else ""
        return
    lost_at: int | None = None  # decoding time of what the demuxer found incomplete
    waiting: av.Packet | None = None
    while True:
        with Capture() as messages:
            following = _next(packets)
        goes_on = following is not None and following.size > 0 and not following.is_keyframe
        if waiting is not None:
            lost = False
            if lost_at is not None and waiting.dts is not None and waiting.dts >= lost_at:
                # The incomplete one is followed by its group, or it is missing and this one belongs to its group.
                lost = goes_on if waiting.dts == lost_at else not waiting.is_keyframe
                lost_at = None
            yield waiting, "the transport stream lost packets" if lost else ""
        if following is None:
            return
        for _, _, text in messages:
            if (found := LOST.match(text)) and int(found[1]) == stream.index:
                lost_at = int(found[2])
        waiting = following


def _next(packets: Iterator[av.Packet]) -> av.Packet | None:
    for packet in packets:
        return packet
    return None


def _decoder(stream: VideoStream) -> Any:
    """The decoder that notices damage: libvpx for VP9, if it is there and takes the stream; else the stream's own."""
    from av import CodecContext
    from av.error import FFmpegError

    if stream.codec_context.name == "vp9":
        try:
            decoder = CodecContext.create("libvpx-vp9", "r")
            decoder.extradata = stream.codec_context.extradata
            return decoder
        except (FFmpegError, ValueError):
            pass
    return stream.codec_context


class _Watch:
    """Which frames may be passed on: those decoded before the first damaged packet.

    Frames come in the order of display, damage in that of decoding. A message puts a packet under suspicion, and frames
    decoded from then on wait until its own frame shows whether it is flagged.
    """

    def __init__(self) -> None:
        self._held: list[tuple[int, av.VideoFrame]] = []
        self._suspects: set[int] = set()
        self._bad: int | None = None
        self._reason = ""

    def suspect(self, number: int) -> None:
        self._suspects.add(number)

    def damaged(self, number: int, reason: str) -> None:
        if self._bad is None or number < self._bad:
            self._bad, self._reason = number, reason

    def pass_on(self, frame: av.VideoFrame, number: int) -> Iterator[av.VideoFrame]:
        """The frames that are known to be sound now that this one has come out, while packet `number` was decoded."""
        mark: Any = frame.opaque
        order = number if mark is None else mark[0]  # libvpx passes none on, and does not reorder
        if self._bad is not None and order >= self._bad:
            raise Damaged(self._reason)
        if frame.is_corrupt:
            raise Damaged("damaged: the decoder concealed errors")
        if not self._suspects:
            yield frame
            return
        self._suspects.discard(order)
        self._held.append((order, frame))
        if len(self._held) > MOST_HELD:
            self._suspects.clear()
        first = min(self._suspects, default=math.inf)
        while self._held and self._held[0][0] < first:
            yield self._held.pop(0)[1]

    def finish(self) -> Iterator[av.VideoFrame]:
        """The frames that still wait when the stream has ended, none of them flagged; raises `Damaged` likewise."""
        yield from (frame for _, frame in self._held)
        if self._bad is not None:
            raise Damaged(self._reason)
