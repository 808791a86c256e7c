"""Decoding of this checkout beside that of another one, such as an earlier version: milliseconds per frame.

    python benchmarks/decode.py CLIP... --against CHECKOUT [--rounds 15]

Gray and RGB frames at smaller side 256, as an extraction reads them. A process of each checkout decodes a clip in turn,
and the order alternates, so that load of the machine meets both; ratios are the median of the ratios of the rounds.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

import click

PROJECT = Path(__file__).resolve().parent.parent
WORKER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from pipeline.video import Selection, VideoReader
for line in sys.stdin:
    wall, processor, frames = time.perf_counter(), time.process_time(), 0
    with VideoReader(Path(line.rstrip()), Selection(), rgb=True) as reader:
        while count := len(reader.read(32).gray):
            frames += count
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    print(1e3 * processor / frames, 1e3 * wall / frames, flush=True)
"""


class Decoder:
    """A process that decodes with the code of one checkout."""

    def __init__(self, checkout: Path) -> None:
        own = checkout / ".venv" / "bin" / "python"
        python = str(own) if own.exists() else sys.executable
        self._process = subprocess.Popen(
            [python, "-c", WORKER, str(checkout)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=checkout,
        )

    def measure(self, clip: Path) -> tuple[float, float]:
        """Milliseconds of processor time and of time per frame."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(clip.resolve(), file=self._process.stdin, flush=True)
        processor, wall = self._process.stdout.readline().split()
        return float(processor), float(wall)


@click.command()
@click.argument("clips", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--against", required=True, type=click.Path(exists=True, path_type=Path), help="Other checkout."
)
@click.option("--rounds", default=15, show_default=True)
def main(clips: tuple[Path, ...], against: Path, rounds: int) -> None:
    """Print a line per clip."""
    before, after = Decoder(against.resolve()), Decoder(PROJECT)
    print(
        f"{'':32}{'processor ms: before':>22}{'after':>8}{'ratio':>8}{'time ms: before':>18}{'after':>8}{'ratio':>8}"
    )
    for clip in clips:
        before.measure(clip), after.measure(clip)
        found: list[tuple[tuple[float, float], tuple[float, float]]] = []
        for number in range(rounds):
            if number % 2:
                second = after.measure(clip)
                found.append((before.measure(clip), second))
            else:
                first = before.measure(clip)
                found.append((first, after.measure(clip)))
        cells = [
            [statistics.median(pair[side][kind] for pair in found) for side in (0, 1)]
            + [statistics.median(pair[1][kind] / pair[0][kind] for pair in found)]
            for kind in (0, 1)
        ]
        (a, b, c), (d, e, f) = cells
        print(f"{clip.name[:31]:32}{a:22.3f}{b:8.3f}{c:8.3f}{d:18.3f}{e:8.3f}{f:8.3f}", flush=True)


if __name__ == "__main__":
    main()
