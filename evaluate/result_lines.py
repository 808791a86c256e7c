"""Predictions as lines of a file, written as they come: CSV or JSON, by the file's ending.

A line is complete once it ends with a line feed; one cut short by a crash is removed when the file is opened again.
Each has a digest of the settings that it was made with, so that a file never mixes results of different networks.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO

from pipeline import atomic
from pipeline.errors import InputError, unreadable

CSV_SUFFIX = ".csv"
JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")

Best = Mapping[str, Mapping[str, float]]
"""For each column (a run, or the fusion) the best classes with their scores, best first."""


class ResultLines:
    """A file of predictions that is appended to; a context manager.

    Attributes:
        path: the file.
        done: names of the videos that are in it.
    """

    def __init__(self, path: Path, settings: str) -> None:
        """Open a new file, or an existing one to continue.

        Args:
            path: ends with .csv, .jsonl, .ndjson or .json.
            settings: digest of what decides the results.

        Raises:
            InputError: another ending, or a file that is damaged or was made with other settings.
        """
        if path.suffix.lower() not in (CSV_SUFFIX, *JSON_SUFFIXES):
            raise InputError(f"--output {path}: expected a name that ends with .csv or .jsonl")
        self.path, self._settings = path, settings
        self._csv = path.suffix.lower() == CSV_SUFFIX
        self._begun = False
        self._file: IO[bytes] | None = None
        self.done = self._read() if path.exists() else frozenset()

    def __enter__(self) -> ResultLines:
        with atomic.disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.close()

    def add(self, video: str, best: Best) -> None:
        """Append one video's line.

        Raises:
            InputError: it cannot be written, for example because the disk is full.
        """
        assert self._file is not None
        text = self._csv_line(video, best) if self._csv else self._json_line(video, best)
        with atomic.disk_errors(self.path):
            data = memoryview(text.encode("utf-8", "surrogateescape"))
            while data:
                data = data[self._file.write(data) :]
        self._begun = True

    def _json_line(self, video: str, best: Best) -> str:
        return json.dumps({"video": video, **best, "settings": self._settings}, ensure_ascii=False) + "\n"

    def _csv_line(self, video: str, best: Best) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not self._begun:
            places = [(column, place) for column, top in best.items() for place in range(1, len(top) + 1)]
            names = [
                name for column, place in places for name in (f"{column} {place}", f"{column} {place} score")
            ]
            writer.writerow(["video", *names, "settings"])
        values = [value for top in best.values() for pair in top.items() for value in pair]
        writer.writerow([video, *values, self._settings])
        return text.getvalue()

    def _read(self) -> frozenset[str]:
        """The videos in the file; a line that a crash cut short is removed once the others are known to be this
        command's.
        """
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise unreadable(self.path, error) from error
        whole = data[: data.rfind(b"\n") + 1]
        begins = b"video," if self._csv else b'{"video": '
        if not whole and not data.startswith(begins) and not begins.startswith(data):
            raise InputError(
                f"{self.path}: expected results of this command, found another file; name another with --output"
            )
        text = whole.decode("utf-8", "surrogateescape")
        self._begun = bool(text)
        try:
            if self._csv:
                reader = csv.DictReader(io.StringIO(text, newline=""))
                if reader.fieldnames and [reader.fieldnames[0], reader.fieldnames[-1]] != [
                    "video",
                    "settings",
                ]:
                    raise ValueError("other columns")
                rows = list(reader)
                pairs = [(row["video"], row["settings"]) for row in rows]
            else:
                values = [json.loads(line) for line in text.split("\n") if line]
                pairs = [(value["video"], value["settings"]) for value in values]
        except (ValueError, KeyError, TypeError, RecursionError, csv.Error) as error:
            raise InputError(
                f"{self.path}: expected results of this command, found {type(error).__name__}: {error}; name another "
                "file with --output"
            ) from error
        if any(settings != self._settings for _, settings in pairs):
            raise InputError(
                f"{self.path}: holds results of other runs, views or weights; repeat those options to continue it, "
                "remove it, or name another file with --output"
            )
        if len(whole) < len(data):
            with atomic.disk_errors(self.path), self.path.open("r+b") as file:
                file.truncate(len(whole))
        return frozenset(video for video, _ in pairs)
