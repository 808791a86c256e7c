"""The manifest of a shard set: what commands need of every shard to start, in one file, so that none is opened.

It is a copy of what the shards record. A row counts only while the shard's file (or its pack) has the size and time
that the row records; what is missing is read from the shards again, and whoever reads a shard compares it with its row
(`RecordedShard`). So a manifest may be deleted at any time, and one that is stale, damaged or untrue costs time or
ends in an error, but never leads to wrong data. Extraction, import, packing and `verify` write it; a command that
had to open shards writes it too, where it may. Nobody locks it: it is replaced in one step, and rows that are lost
when two write at once are read again.

HDF5 1.10 like score files; texts are UTF-8 of a fixed length, arrays lie in the file as they are:

    /               attrs: format, version, crc32 (of the arrays in this order)
    /videos         str[n]     class/stem
    /packs          str[p]     paths below the set's folder
    /requests       str[r]     JSON, `Request.as_dict` with source_bytes 0
    /size           int64[n]   of the shard's file, or of its pack
    /modified       int64[n]   when that was written, ns since 1970
    /pack           int32[n]   index into packs, -1 for a loose shard
    /frame_count    int64[n]
    /height, width  int32[n]   pixels
    /forward        int64[n]   flows, -1 where the shard lacks this direction
    /backward       int64[n]
    /source_bytes   int64[n]   of the video file
    /tables         uint32[n]  CRC-32 of all tables
    /request        int32[n]   index into requests
    /members        int32[p]   shards in each pack
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt

from pipeline import atomic, hdf5
from pipeline.errors import InputError, Unreadable
from pipeline.hdf5 import Foreign, Invalid, SourceFile
from pipeline.machine import in_processes, making_what_stays, usable_cores
from pipeline.progress import progress
from pipeline.request import Request, request_of
from pipeline.shard import Shard, ShardAddress, open_shard
from pipeline.shard_file import DIRECTIONS, LARGEST_SIDE, Contents
from pipeline.shard_index import index_pack_or_report, list_files

NAME = "manifest.hdf5"
"""Beside the folders of the classes; no shard's name ends like this."""
FORMAT = "two-stream manifest"
VERSION = 1
TEXTS = ("videos", "packs", "requests")
ARRAYS = {
    "size": "<i8",
    "modified": "<i8",
    "pack": "<i4",
    "frame_count": "<i8",
    "height": "<i4",
    "width": "<i4",
    "forward": "<i8",
    "backward": "<i8",
    "source_bytes": "<i8",
    "tables": "<u4",
    "request": "<i4",
    "members": "<i4",
}
MOST_REQUESTS = 4096
"""A set whose shards were made in more ways than this gets no manifest."""
MANY = 2000
"""Shards from which on several processes open them; starting a process costs about as much as opening a thousand."""
CHUNK = 250
SAVE_EVERY = 60.0
"""Seconds between writes of the manifest while shards are opened, so that an interruption costs little."""


class Facts(NamedTuple):
    """What a command needs of a shard before it reads any of it.

    Attributes:
        frame_count, height, width: as the shard's.
        forward, backward: flows, -1 where it lacks this direction.
        source_bytes: of the video file.
        tables: CRC-32 of all its tables.
        request: what it answers, with source_bytes 0, so that shards made alike share one.
    """

    frame_count: int
    height: int
    width: int
    forward: int
    backward: int
    source_bytes: int
    tables: int
    request: Request

    @property
    def made(self) -> Request:
        """The whole request that the shard answers."""
        return dataclasses.replace(self.request, source_bytes=self.source_bytes)


class Stamp(NamedTuple):
    """Bytes of a file, and when it was written in ns since 1970; -1 where the system does not say."""

    size: int = -1
    modified: int = -1


class Record(NamedTuple):
    """One shard in a manifest: the stamp of its file, its pack's path below the set's folder or "", and the facts."""

    stamp: Stamp
    pack: str
    facts: Facts


def facts_of(shard: Shard) -> Facts:
    """The facts of a shard, from itself.

    Raises:
        InputError: it records something that no request asks for.
    """
    request, contents = request_of(shard), shard.contents
    forward, backward = (len(contents.flow[name]) if name in contents.flow else -1 for name in DIRECTIONS)
    streams = [contents.frames, *contents.flow.values()]
    tables = [
        value
        for part in streams
        if part is not None
        for value in vars(part).values()
        if isinstance(value, np.ndarray)
    ]
    return Facts(
        shard.frame_count,
        shard.height,
        shard.width,
        forward,
        backward,
        request.source_bytes,
        hdf5.crc32(tables),
        dataclasses.replace(request, source_bytes=0),
    )


class RecordedShard(Shard):
    """A shard that is opened when more of it is wanted than is recorded; then the two are compared."""

    def __init__(self, video: str, address: ShardAddress, facts: Facts) -> None:
        self.address, self.video, self.facts = address, video, facts
        self.frame_count, self.height, self.width = facts.frame_count, facts.height, facts.width
        self.has_frames, self.directions = facts.request.frames, facts.request.directions
        self.method, self.flow_counts = facts.request.method, _flow_counts(facts.forward, facts.backward)
        self._read: Contents | None = None
        self._descriptor = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_read": None}

    @property
    def contents(self) -> Contents:
        """Everything of it but its image streams.

        Raises:
            InputError: it cannot be opened, or is not the shard that is recorded.
        """
        if self._read is None:
            shard = open_shard(self.address)
            found = facts_of(shard)
            if found != self.facts or shard.video != self.video:
                raise InputError(
                    f"{self.address}: expected the shard found at the start or the one that its set's {NAME} records, "
                    f"{described(self.video, self.facts)}; found {described(shard.video, found)}: delete that {NAME}, "
                    "which is recreated, and run the same command again"
                )
            self._read = shard.contents
        return self._read

    def forget(self) -> None:
        """Drop what was read of it; it is opened again when that is wanted."""
        self._read = None

    def step(self, direction: str = "forward") -> int:
        """Frames between the two of a pair."""
        return self.facts.request.step if direction in self.directions else super().step(direction)


@functools.cache
def _flow_counts(forward: int, backward: int) -> Mapping[str, int]:
    """The flows of each direction that there is; shards with as many share it."""
    counts = zip(DIRECTIONS, (forward, backward), strict=True)
    return {direction: count for direction, count in counts if count >= 0}


def described(video: str, facts: Facts) -> str:
    """The facts for a message."""
    counts = [f"{count} {name}" for name, count in _flow_counts(facts.forward, facts.backward).items()]
    return (
        f"{video} with {facts.frame_count} frames of {facts.width}x{facts.height}, {' and '.join(counts) or 'no'} "
        f"flows, tables {facts.tables:08x}"
    )


# --- a set of shards ------------------------------------------------------------------------------------------------


class ShardSet(Mapping[str, ShardAddress]):
    """The shards of a folder by video id, in order of their ids; made by `read_shard_set`.

    Attributes:
        folder: of the set.
        facts: video -> what is known of its shard without opening it.
    """

    def __init__(self, folder: Path, records: _Manifest) -> None:
        self.folder = folder
        self.facts: dict[str, Facts] = {}
        self._recorded = records
        self._order: list[str] = []
        self._loose: dict[str, Stamp] = {}
        self._packed: dict[str, Path] = {}
        self._packs: dict[Path, tuple[Stamp, int]] = {}
        self._odd: dict[str, Shard] = {}
        self._seen: set[str] = set()  # opened by this object
        self._requests: dict[str, Request] = {}

    def __getitem__(self, video: str) -> ShardAddress:
        if video in self._loose:
            return ShardAddress(self.folder / f"{video}.h5")
        return ShardAddress(self._packed[video], f"/{video}")

    def __contains__(self, video: object) -> bool:
        return video in self._loose or video in self._packed

    def __iter__(self) -> Iterator[str]:
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order)

    def bytes_of(self, videos: Iterable[str]) -> int:
        """Bytes of the files that hold the shards of some videos."""
        videos = list(videos)
        packs = {self._packed[video] for video in videos if video not in self._loose}
        loose = sum(self._loose[video].size for video in videos if video in self._loose)
        return loose + sum(self._packs[path][0].size for path in packs)

    def shard(self, video: str) -> Shard:
        """The shard of a video whose facts are known."""
        odd = self._odd.get(video)
        return odd if odd is not None else RecordedShard(video, self[video], self.facts[video])

    def learn(self, videos: Iterable[str], again: bool = False, jobs: int | None = None) -> dict[str, str]:
        """Open the shards of which nothing is known, and record them in the set's manifest if it can be written.

        Args:
            videos: those of the set among them count.
            again: also open those known only from the manifest.
            jobs: processes for very many; one per usable core unless given.

        Returns:
            video -> what is wrong with its shard.

        Raises:
            Unreadable: the system does not let a shard be read now.
        """
        known: Collection[str] = self._seen if again else self.facts
        unknown = [video for video in videos if video in self and video not in known]
        chunks = [
            [(video, self[video]) for video in unknown[i : i + CHUNK]] for i in range(0, len(unknown), CHUNK)
        ]
        jobs = min(8, jobs or usable_cores()) if len(unknown) >= MANY else 1
        found = map(_opened, chunks) if jobs == 1 else in_processes(_opened, chunks, jobs)
        faults: dict[str, str] = {}
        for video in unknown:
            self.facts.pop(video, None)
        pairs: Iterable[tuple[str, Facts | Shard | str]] = (pair for chunk in found for pair in chunk)
        if len(unknown) >= MANY:
            pairs = progress(pairs, "looking into shards", len(unknown), "shard")
        saved = time.monotonic()
        for video, facts in pairs:
            if isinstance(facts, str):
                faults[video] = facts
                continue
            if isinstance(facts, Shard):
                self._odd[video], facts = facts, facts_of(facts)
            self.facts[video] = _sharing(facts, self._requests)
            self._seen.add(video)
            if time.monotonic() - saved > SAVE_EVERY:
                self.save()
                saved = time.monotonic()
        if len(unknown) > len(faults):
            self.save()
        return faults

    def see(self, address: ShardAddress, video: str, stamp: Stamp, facts: Facts) -> None:
        """Accept the facts of a shard that calls itself `video` from whoever opened it, unless its file changed
        since.
        """
        if video not in self or self[video] != address:
            return
        if stamp == (self._loose[video] if address.group == "/" else self._packs[address.file][0]):
            self.facts[video] = _sharing(facts, self._requests)

    def save(self) -> None:
        """Replace the set's manifest by what is known, if it can be written and is not of another program."""
        if not self._recorded.replaceable:
            return
        records = {}
        for video, facts in self.facts.items():
            if video in self._odd:
                continue
            pack = self._packed.get(video) if video not in self._loose else None
            stamp = self._loose[video] if pack is None else self._packs[pack][0]
            records[video] = Record(stamp, "" if pack is None else self._below(pack), facts)
        members = {self._below(pack): count for pack, (_, count) in self._packs.items() if count >= 0}
        _write(self.folder, _Manifest(records, members))

    def _below(self, pack: Path) -> str:
        return pack.relative_to(self.folder).as_posix()


@making_what_stays()
def read_shard_set(folder: str | Path, unusable: dict[ShardAddress, InputError] | None = None) -> ShardSet:
    """The shards below a folder, loose files and packs alike, and what its manifest says of those it is right about.

    Files are listed, not opened, except packs that the manifest lacks. Where a video is both loose and packed, the
    loose file counts.

    Args:
        folder: a set of shards.
        unusable: as for `index_shards`.

    Raises:
        InputError: a pack cannot be read, or holds something else, and there is no list for it.
    """
    folder = Path(folder)
    files, recorded = list_files(folder), _read(folder)
    found = ShardSet(folder, recorded)
    for video, entry in files.loose.items():
        stamp = found._loose[video] = stamp_of(entry)
        record = recorded.records.get(video)
        if record is not None and record.stamp == stamp and not record.pack:
            found.facts[video] = record.facts
    in_packs: dict[str, dict[str, Record]] = defaultdict(dict)
    for video, record in recorded.records.items() if files.packs else ():
        if record.pack:
            in_packs[record.pack][video] = record
    for path, entry in files.packs.items():
        stamp, name = stamp_of(entry), path.relative_to(folder).as_posix()
        known = {video: record for video, record in in_packs[name].items() if record.stamp == stamp}
        videos: Iterable[str] = known
        count = len(known)
        if recorded.members.get(name) != count:
            odd: dict[ShardAddress, InputError] = {}
            videos = index_pack_or_report(path, None if unusable is None else odd)
            count = -1 if odd else len(list(videos))
            if unusable is not None:
                unusable |= odd
        found._packs[path] = stamp, count
        for video in videos:
            found._packed[video] = path
            if video not in files.loose:
                found.facts.pop(video, None)
                if video in known:
                    found.facts[video] = known[video].facts
    # Loose files are in order already, which a dict keeps and a set would not: sorting them again is quick.
    found._order = sorted(dict.fromkeys((*files.loose, *found._packed)))
    return found


def stamp_of(file: os.DirEntry[str] | Path) -> Stamp:
    """The stamp of a file, following links."""
    try:
        status = file.stat()
    except OSError:  # opening it says why
        return Stamp()
    return Stamp(status.st_size, status.st_mtime_ns)


def _opened(chunk: Sequence[tuple[str, ShardAddress]]) -> list[tuple[str, Facts | Shard | str]]:
    """The facts of some shards; a shard itself where a manifest would not say all; or what is wrong with it."""
    requests: dict[str, Request] = {}
    found: list[tuple[str, Facts | Shard | str]] = []
    for video, address in chunk:
        try:
            with open_shard(address) as shard:
                facts = _sharing(facts_of(shard), requests)
            found.append((video, facts if recordable(video, shard) else shard))
        except Unreadable:
            raise  # it may be intact, and work should not continue without it
        except InputError as error:
            found.append((video, str(error)))
    return found


def recordable(video: str, shard: Shard) -> bool:
    """Whether a manifest can hold a shard: it is the video's, and the flow of both directions was made alike."""
    made_with = [dict(flow.attributes, device="") for flow in shard.contents.flow.values()]
    return shard.video == video and all(made == made_with[0] for made in made_with)


def _sharing(facts: Facts, requests: dict[str, Request]) -> Facts:
    """The facts with the first of equal requests."""
    text = json.dumps(facts.request.as_dict(), sort_keys=True)
    return facts._replace(request=requests.setdefault(text, facts.request))


def has_manifest(folder: Path) -> bool:
    """Whether a folder has the manifest of a set."""
    return (folder / NAME).is_file()


def record(folder: Path, made: Mapping[str, tuple[Stamp, Facts]]) -> None:
    """Add loose shards that were just written to the manifest of a set; does nothing, silently, where it cannot be
    written.
    """
    before = _read(folder) if made else _Manifest({}, {}, replaceable=False)
    if before.replaceable:
        requests: dict[str, Request] = {}
        fresh = {
            video: Record(stamp, "", _sharing(facts, requests)) for video, (stamp, facts) in made.items()
        }
        _write(folder, _Manifest({**before.records, **fresh}, before.members))


def refresh(folder: Path) -> None:
    """Record the shards of a set that changed, and forget those that are gone."""
    with contextlib.suppress(InputError):  # a pack that cannot be read, which others report
        found = read_shard_set(folder, {})
        found.learn(found)
        found.save()


# --- the file -------------------------------------------------------------------------------------------------------


class _Manifest(NamedTuple):
    """What a manifest file holds.

    Attributes:
        records: by video.
        members: pack's path -> number of its shards.
        replaceable: whether a new one may take its place.
    """

    records: dict[str, Record]
    members: dict[str, int]
    replaceable: bool = True


def _read(folder: Path) -> _Manifest:
    """What the manifest of a folder holds; nothing where there is none that can be used."""
    try:
        with hdf5.reading(folder / NAME) as (file, source):
            return _parsed(file, source)
    except (FileNotFoundError, NotADirectoryError):
        return _Manifest({}, {})
    except Foreign:
        return _Manifest({}, {}, replaceable=False)
    except Invalid:
        return _Manifest({}, {})
    except InputError:  # the system does not let it be read
        return _Manifest({}, {}, replaceable=False)


def _parsed(file: Any, source: SourceFile) -> _Manifest:
    root = h5py.h5g.open(file, b"/")
    if not h5py.h5a.exists(root, b"format") or hdf5.attribute(root, "format", str) != FORMAT:
        raise Foreign(f"it is not a {FORMAT}")
    if hdf5.attribute(root, "version", int) != VERSION:
        raise Foreign("it has another version")
    arrays = {name: hdf5.texts(hdf5.child(root, name, h5py.h5d.open), name, source) for name in TEXTS}
    arrays |= {
        name: hdf5.array(hdf5.child(root, name, h5py.h5d.open), name, dtype, source)
        for name, dtype in ARRAYS.items()
    }
    if hdf5.crc32(arrays.values()) != hdf5.attribute(root, "crc32", int):
        raise Invalid("its arrays fail their checksum")
    videos, packs, texts = (hdf5.decoded(arrays[name]) for name in TEXTS)
    requests = [_request(text) for text in texts]
    _check(arrays, requests)
    rows = [arrays[name].tolist() for name in ARRAYS]
    size, modified, pack, *counts, request, members = rows
    packs = (*packs, "")  # which index -1 selects
    facts = map(Facts, *counts, map(requests.__getitem__, request))
    records = map(Record, map(Stamp, size, modified), map(packs.__getitem__, pack), facts)
    return _Manifest(dict(zip(videos, records, strict=True)), dict(zip(packs[:-1], members, strict=True)))


def _request(text: str) -> Request:
    values = json.loads(text)
    if not isinstance(values, dict):
        raise Invalid("a request is not a JSON object")
    return Request.from_dict(values)


def _check(arrays: Mapping[str, npt.NDArray[Any]], requests: Sequence[Request]) -> None:
    """Raise Invalid unless arrays fit each other and are in their bounds."""
    count, packs = len(arrays["videos"]), len(arrays["packs"])
    for name in ARRAYS:
        expected = packs if name == "members" else count
        if arrays[name].shape != (expected,):
            raise Invalid(f"{name!r} has shape {arrays[name].shape}, expected {(expected,)}")
    bounds = {
        "pack": (-1, packs - 1),
        "request": (0, len(requests) - 1),
        "frame_count": (0, 2**31),
        "height": (1, LARGEST_SIDE),
        "width": (1, LARGEST_SIDE),
        "forward": (-1, 2**31),
        "backward": (-1, 2**31),
        "source_bytes": (0, 2**62),
    }
    for name, (low, high) in bounds.items():
        if count and not low <= arrays[name].min() <= arrays[name].max() <= high:
            raise Invalid(f"{name!r} is not within {low} to {high}")
    for direction in DIRECTIONS:
        has = np.array([direction in request.directions for request in requests], bool)
        if count and (has[arrays["request"]] != (arrays[direction] >= 0)).any():
            raise Invalid(f"{direction!r} does not fit the requests")


def _write(folder: Path, manifest: _Manifest) -> None:
    """Replace the manifest of a folder, or do nothing if that is not possible: it can be recreated at any time."""
    requests: dict[int, int] = {}
    distinct: dict[str, int] = {}
    for _, _, facts in manifest.records.values():
        if id(facts.request) not in requests:
            text = json.dumps(facts.request.as_dict(), sort_keys=True)
            requests[id(facts.request)] = distinct.setdefault(text, len(distinct))
    if len(distinct) > MOST_REQUESTS:
        return
    records = list(manifest.records.values())
    packs = {name: i for i, name in enumerate(sorted({record.pack for record in records} - {""}))}
    columns: dict[str, Any] = {
        "size": [record.stamp.size for record in records],
        "modified": [record.stamp.modified for record in records],
        "pack": [packs.get(record.pack, -1) for record in records],
        **{
            name: [facts[i] for _, _, facts in records]
            for i, name in enumerate(Facts._fields)
            if name != "request"
        },
        "request": [requests[id(facts.request)] for _, _, facts in records],
        "members": [manifest.members.get(name, -1) for name in packs],
    }
    texts = dict(zip(TEXTS, (list(manifest.records), list(packs), list(distinct)), strict=True))
    arrays = {name: hdf5.encoded(values) for name, values in texts.items()}
    arrays |= {name: np.array(columns[name], dtype) for name, dtype in ARRAYS.items()}
    with (
        contextlib.suppress(InputError),
        atomic.writing(folder / NAME) as temporary,
        hdf5.new_file(temporary) as file,
    ):
        hdf5.write_arrays(file, arrays, {"format": FORMAT, "version": VERSION})
