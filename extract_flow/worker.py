"""What a worker process does with the videos it is given.

On a CPU it extracts one video after the other, and many workers run in parallel. On a GPU one worker feeds the device:
threads decode several videos, the main thread computes batches that may hold pieces of several videos, and more
threads encode and write, with bounded queues in between. FFmpeg, swscale, Pillow, OpenCV and file access release
Python's lock.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from extract_flow import methods
from extract_flow.clip import Clip, Piece, VideoTask, begin, compute
from extract_flow.flow_method import DeviceLostError, DeviceMemoryError, FlowMethod
from extract_flow.gpu_use import mps_runs
from extract_flow.settings import ExtractionSettings
from extract_flow.supervisor import Link, Ready
from pipeline import atomic
from pipeline.codec import Quantised, Quantiser
from pipeline.errors import InputError
from pipeline.manifest import Facts, Stamp
from pipeline.outcome import WAIT_FOR_FRAMES, WAIT_FOR_WRITERS, Outcome
from pipeline.progress import COMPILING, notes_to

BEAT = 1.0
"""Seconds between a decoder's signs of life."""
MOST_PROCESSES, CORES_OF_A_PROCESS = 8, 2
"""Workers that share a GPU at most, and the cores that one of them keeps busy."""
DECODED_AHEAD = 2
"""Pieces that wait for the device, for each decoding thread."""


class Result(NamedTuple):
    """The result for one video.

    Attributes:
        outcome: for the records.
        disk_full: there is no disk space for any other video either.
        written: what the set's manifest records of the shard, if one was written.
    """

    outcome: Outcome
    disk_full: bool
    written: tuple[Stamp, Facts] | None = None


def serve(
    link: Link,
    slot: int,
    first: Ready | None,
    settings: ExtractionSettings,
    device: str,
    threads: int,
    cores: int,
    processes: int | None,
    overlap: bool | None,
) -> None:
    """Extract videos until there are no more: the `serve` of `supervisor.supervise`.

    Args:
        link: to the parent.
        slot: this worker's number; on GPUs, they take turns.
        first: what the first worker reported; None in that worker itself.
        settings: what to make of every video.
        device: as `methods.load` takes it; "auto" and "cuda" leave the choice of the GPU to this function.
        threads: CPU threads of the method on a CPU.
        cores: of the CPU, for all workers; with GPUs they are divided among the decoding threads.
        processes: workers for each GPU; None follows the cores (`processes_per_gpu`).
        overlap: run the stages in threads; None does so on a GPU.
    """
    try:
        # The first worker reported how many there are on GPUs, and how many GPUs they share.
        on_gpus = first is not None and first.workers is not None and device in ("auto", "cuda")
        chosen = f"cuda:{slot % first.gpus}" if first is not None and on_gpus else device
        with notes_to(link.preparing):
            method = methods.load(settings.method, chosen, threads, **settings.parameters)
    except (InputError, DeviceLostError) as error:
        link.refuse(str(error))
        return
    on_gpu = method.device != "cpu"
    if not on_gpu:
        warm_up(method, settings.codec.quantiser, link.preparing)
    overlap = on_gpu if overlap is None else overlap
    implementation = f" ({method.implementation})" if method.implementation else ""
    gpus = 1 if device.startswith("cuda:") else method.device_count
    sharing = (processes or processes_per_gpu(cores // gpus)) if on_gpu else 1
    method.share_device(sharing)
    beside = max(1, cores // (gpus * sharing))
    ready = Ready(
        method.device + implementation,
        gpus * sharing if on_gpu else None,
        2 * beside if overlap else 1,
        gpus,
        "side by side by MPS" if sharing > 1 and mps_runs() else "",
    )
    link.ready(ready)
    try:
        if overlap:
            Overlapped(link, settings, method, ready.device, beside).run()
            return
        while (message := link.receive()) is not None:
            number, task = message
            link.finish(number, make(number, task, settings, method, ready.device, link))
    except DeviceLostError as error:
        link.lose_device(f"{method.device}: {error}")


def processes_per_gpu(cores: int) -> int:
    """Workers that share a GPU on a machine with so many cores.

    Each holds Python's lock for a good part of a pair's CPU time (Pillow's encoder above all), so one process is far
    too slow for a GPU. On an H200 with 16 cores, 8 were the fastest (docs/performance/gpu.md).
    """
    return min(MOST_PROCESSES, max(1, cores // CORES_OF_A_PROCESS))


def warm_up(method: FlowMethod, quantiser: Quantiser, report: Callable[[str], None]) -> None:
    """Compile what the method and the codec compute with, or load it, so that the speed shown is that of the work.

    The others are started when the first worker is ready, so they find compiled kernels in the cache.
    """
    from pipeline.compiled import reporting

    frames = np.tile(np.arange(32, dtype=np.uint8), (2, 32, 1))
    frames[1] += 1
    with reporting(lambda: report(COMPILING)):
        method.run(frames, np.array([[0, 1]]), "levels", quantiser)


def make(
    number: int,
    task: VideoTask,
    settings: ExtractionSettings,
    method: FlowMethod,
    device: str,
    link: Link | None = None,
) -> Result:
    """Make one video's shard, one stage after the other.

    Raises:
        DeviceLostError: nothing more can be computed in this process.
    """
    clip = Clip(task, settings, device)
    try:
        with clip:
            if not clip.open(_sign_of_life(number, link)):
                return Result(clip.outcome("skipped"), False)
            for piece in _watched(clip.pieces(method.batch_pairs), number, link):
                with clip.stage("flow"):
                    flows = compute_with_care([piece], method, settings.codec.quantiser)[0]
                if isinstance(flows, Exception):
                    raise flows
                clip.store(piece, flows)
                if link is not None:
                    link.progress(number, clip.progress())
            clip.finish()
            return Result(clip.outcome("done"), False, clip.written)
    except DeviceLostError:
        raise
    except Exception as error:  # noqa: BLE001  an error in one video must cost that video only
        return failed(clip, error)


def failed(clip: Clip, error: Exception) -> Result:
    """The result of a clip that an error ended; an error that is not the user's also shows where it was raised."""
    reason = str(error)
    if not isinstance(error, InputError):
        where = traceback.extract_tb(error.__traceback__)[-1:]
        place = f" ({where[0].filename.rpartition('/')[2]}:{where[0].lineno})" if where else ""
        reason = f"{type(error).__name__}: {reason}{place}"
    return Result(clip.outcome("failed", reason), atomic.no_space_left(error.__cause__))


def compute_with_care(
    pieces: list[Piece], method: FlowMethod, quantiser: Quantiser
) -> list[dict[str, Quantised] | Exception]:
    """`compute`, but a batch too large for the device is halved, and an error costs only the piece that causes it.

    Raises:
        DeviceLostError: nothing more can be computed in this process.
    """
    try:
        return list(compute(pieces, method, quantiser))
    except DeviceMemoryError as error:
        if len(pieces) > 1:
            half = len(pieces) // 2
            parts = (pieces[:half], pieces[half:])
            return [flows for part in parts for flows in compute_with_care(part, method, quantiser)]
        halves = _halves(pieces[0])
        if halves is None:
            return [error]
        first, second = (compute_with_care([half], method, quantiser)[0] for half in halves)
        for flows in (first, second):
            if isinstance(flows, Exception):
                return [flows]
        assert isinstance(first, dict)
        assert isinstance(second, dict)
        return [{name: _joined(first.get(name), second.get(name)) for name in pieces[0].pairs}]
    except DeviceLostError:
        raise
    except Exception as error:  # noqa: BLE001  one clip's error must not cost the others in its batch
        if len(pieces) == 1:
            return [error]
        return [compute_with_care([piece], method, quantiser)[0] for piece in pieces]


def _halves(piece: Piece) -> tuple[Piece, Piece] | None:
    """A piece's pairs in two pieces with only the frames they need; None if there is only one pair."""
    flat = [(name, pair) for name, pairs in piece.pairs.items() for pair in pairs.tolist()]
    if len(flat) < 2:
        return None
    halves = []
    for part in (flat[: len(flat) // 2], flat[len(flat) // 2 :]):
        used = sorted({frame for _, pair in part for frame in pair})
        index = {frame: i for i, frame in enumerate(used)}
        pairs: dict[str, list[list[int]]] = {}
        for name, (before, after) in part:
            pairs.setdefault(name, []).append([index[before], index[after]])
        arrays = {name: np.array(values, np.int64) for name, values in pairs.items()}
        halves.append(Piece(piece.clip, piece.gray[used], None, arrays))
    return halves[0], halves[1]


def _joined(first: Quantised | None, second: Quantised | None) -> Quantised:
    parts = [part for part in (first, second) if part is not None]
    names = [field.name for field in dataclasses.fields(Quantised)]
    return Quantised(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _sign_of_life(number: int, link: Link | None) -> Callable[[], None] | None:
    """A function for the decoder to call after each frame; it reports to the parent every `BEAT` seconds."""
    if link is None:
        return None
    reported = time.monotonic()
    link.busy(number, True)

    def on_frame() -> None:
        nonlocal reported
        now = time.monotonic()
        if now - reported > BEAT:
            reported = now
            link.busy(number, True)

    return on_frame


def _watched(pieces: Iterator[Piece], number: int, link: Link | None) -> Iterator[Piece]:
    """The pieces; reports to the parent when decoding starts and stops, so that only decoding is watched."""
    while True:
        if link is not None:
            link.busy(number, True)
        piece = next(pieces, None)
        if link is not None:
            link.busy(number, False)
        if piece is None:
            return
        yield piece


class _Last(NamedTuple):
    """Follows a clip's last piece through the queues; `error` ended its decoding."""

    clip: Clip
    number: int
    error: Exception | None = None


class _Computed(NamedTuple):
    """A piece with its flow, for the encoder."""

    piece: Piece
    flows: dict[str, Quantised] | Exception


class _Started(NamedTuple):
    """A batch that the method works on, with the clips that end with it.

    Attributes:
        batch: its pieces.
        ended: clips whose last piece is in this batch or an earlier one.
        results: waits for the results; or the error that kept them from being started.
        seconds: that starting took.
    """

    batch: list[Piece]
    ended: list[_Last]
    results: Callable[[], list[dict[str, Quantised]]] | Exception
    seconds: float


class Overlapped:
    """Decode, compute, and encode and write at the same time, for videos that keep arriving.

    The queues between stages are bounded, so a slow stage makes the faster ones wait instead of filling the memory.
    """

    def __init__(
        self, link: Link, settings: ExtractionSettings, method: FlowMethod, device: str, threads: int
    ) -> None:
        """Prepare.

        Args:
            link: to the parent.
            settings: what to make of every video.
            method: computes the flow; called by one thread only.
            device: its name, recorded in the shards.
            threads: number of threads that decode, and of those that encode.
        """
        self._link, self._settings, self._method, self._device = link, settings, method, device
        self._threads = max(1, threads)
        self._numbers: dict[int, int] = {}
        self._tasks: queue.Queue[tuple[int, VideoTask] | None] = queue.Queue()
        self._decoded: queue.Queue[Piece | _Last | None] = queue.Queue(DECODED_AHEAD * self._threads)
        self._computed: queue.Queue[_Computed | _Last | None] = queue.Queue(DECODED_AHEAD)

    def run(self) -> None:
        """Extract videos until the parent has no more.

        Raises:
            DeviceLostError: nothing more can be computed in this process; clips with all of their flow are written.
        """
        receiver = threading.Thread(target=self._receive, daemon=True)
        decoders = [threading.Thread(target=self._decode, daemon=True) for _ in range(self._threads)]
        writer = threading.Thread(target=self._write, daemon=True)
        for thread in (receiver, *decoders, writer):
            thread.start()
        try:
            try:
                self._compute(len(decoders))
            finally:
                self._computed.put(None)
        except DeviceLostError:
            writer.join()
            raise
        writer.join()

    def _receive(self) -> None:
        while (message := self._link.receive()) is not None:
            self._tasks.put(message)
        for _ in range(self._threads):
            self._tasks.put(None)

    def _decode(self) -> None:
        while (message := self._tasks.get()) is not None:
            number, task = message
            clip = Clip(task, self._settings, self._device)
            error: Exception | None = None
            try:
                if not clip.open(_sign_of_life(number, self._link)):
                    self._link.finish(number, Result(clip.outcome("skipped"), False))
                    clip.close()
                    continue
                self._numbers[id(clip)] = number
                for piece in _watched(clip.pieces(self._method.batch_pairs), number, self._link):
                    self._decoded.put(piece)
                    if clip.error is not None:
                        break
            except Exception as raised:  # noqa: BLE001  an error in one video must cost that video only
                error = raised
                self._link.busy(number, False)
            self._decoded.put(_Last(clip, number, error))
        self._decoded.put(None)

    def _compute(self, decoders: int) -> None:
        """Compute decoded pieces in batches; clips of one size share a batch if their pieces are waiting.

        A batch is handed to the device before the results of the one before are fetched, so that it never idles.
        """
        most = self._method.batch_pairs
        held: Piece | None = None
        ahead: _Started | None = None
        while decoders or held is not None:
            batch: list[Piece] = [] if held is None else [held]
            pairs = 0 if held is None else _pair_count(held)
            ended: list[_Last] = []
            held = None
            waited = 0.0
            if not batch and self._decoded.empty():
                self._deliver(ahead)  # nothing to hand over yet: the results need not wait
                ahead = None
            # Wait for the first piece only: the device must not idle until a batch is full.
            while decoders and (not (batch or ended) or (pairs < most and not self._decoded.empty())):
                before = time.perf_counter()
                item = self._decoded.get()
                waited += time.perf_counter() - before
                if item is None:
                    decoders -= 1
                elif isinstance(item, _Last):
                    ended.append(item)
                elif batch and (
                    item.gray.shape[1:] != batch[0].gray.shape[1:] or pairs + _pair_count(item) > most
                ):
                    held = item
                    break
                else:
                    batch.append(item)
                    pairs += _pair_count(item)
            batch = [piece for piece in batch if piece.clip.error is None]
            if batch:
                batch[0].clip.count(WAIT_FOR_FRAMES, waited)
            started = self._start(batch, ended)
            self._deliver(ahead)
            ahead = started
        self._deliver(ahead)

    def _start(self, batch: list[Piece], ended: list[_Last]) -> _Started:
        """Hand a batch to the method."""
        began = time.perf_counter()
        results: Callable[[], list[dict[str, Quantised]]] | Exception
        try:
            results = begin(batch, self._method, self._settings.codec.quantiser) if batch else list
        except Exception as error:  # noqa: BLE001  `_deliver` finds out whose it is
            results = error
        return _Started(batch, ended, results, time.perf_counter() - began)

    def _deliver(self, started: _Started | None) -> None:
        """Wait for a batch, and pass its results and what ends after them on."""
        if started is None:
            return
        before = time.perf_counter()
        results: list[dict[str, Quantised] | Exception]
        try:
            if isinstance(started.results, Exception):
                raise started.results
            results = list(started.results())
        except DeviceLostError:
            raise
        except Exception:  # noqa: BLE001  one clip's error must not cost the others in its batch
            results = compute_with_care(started.batch, self._method, self._settings.codec.quantiser)
        seconds = started.seconds + time.perf_counter() - before
        seconds /= max(1, sum(map(_pair_count, started.batch)))
        for piece, flows in zip(started.batch, results, strict=True):
            piece.clip.count("flow", seconds * _pair_count(piece))
            before = time.perf_counter()
            self._computed.put(_Computed(piece, flows))
            piece.clip.count(WAIT_FOR_WRITERS, time.perf_counter() - before)
        for last in started.ended:  # after their clips' last pieces
            self._computed.put(last)

    def _write(self) -> None:
        with ThreadPoolExecutor(self._threads) as encoders, ThreadPoolExecutor(2) as finishers:
            while (item := self._computed.get()) is not None:
                if isinstance(item, _Last):
                    finishers.submit(self._finish, item)
                    continue
                clip = item.piece.clip
                if clip.error is not None:
                    continue
                try:
                    if isinstance(item.flows, Exception):
                        raise item.flows
                    clip.store(item.piece, item.flows, encoders)
                    self._link.progress(self._numbers[id(clip)], clip.progress())
                except Exception as error:  # noqa: BLE001  costs that video only
                    clip.error = error

    def _finish(self, last: _Last) -> None:
        """Finish a clip's shard, in a thread of its own because flushing to the disk is slow."""
        clip = last.clip
        error = clip.error or last.error
        try:
            with clip:
                if error is None:
                    clip.finish()
                    result = Result(clip.outcome("done"), False, clip.written)
                else:
                    result = failed(clip, error)
        except Exception as raised:  # noqa: BLE001  costs that video only
            result = failed(clip, raised)
        self._numbers.pop(id(clip), None)
        self._link.finish(last.number, result)


def _pair_count(piece: Piece) -> int:
    return sum(map(len, piece.pairs.values()))
