"""What the CUDA kernels cost, counted in machine code, without a GPU; and the pairs/s that these counts allow.

    python benchmarks/gpu_counts.py [--check] [--arch 90 ...] [--nvcc]

Needs NVRTC (package nvidia-cuda-nvrtc) for registers, spills and shared memory on every architecture, and nvdisasm
(package nvidia-cuda-nvdisasm, or a toolkit) for instructions, which are those of sm_90. `--check` fails where a kernel
spills, or a count is above its limit in `LIMITS`. `--nvcc` compiles with the toolkit's nvcc on PATH instead, as another
version of the same compiler. What is predicted is arithmetic, not a measurement: see
docs/explanation/gpu.md for the assumptions.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from extract_flow.brox import parameters as brox_parameters
from extract_flow.brox.cuda import solver as brox_cuda
from extract_flow.cuda import quantise
from extract_flow.cuda.images import Size
from extract_flow.cuda.kernels import Program, nvrtc_version, run_nvrtc
from extract_flow.tvl1 import parameters as tvl1_parameters
from extract_flow.tvl1 import solver as tvl1_solver
from extract_flow.tvl1.cuda import solver as tvl1_cuda
from pipeline.errors import InputError

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
PIXELS_OF_A_THREAD = 8
"""In the tile kernels: four rows of two columns."""
FILL, RESAMPLE, FRAME = 30, 60, 400
"""Instructions per pixel, read off the machine code: of reading a pixel into shared memory, of one direction of a
bilinear resampling, and of everything done for a frame (pyramid, prefilter, step sizes)."""
CLUSTER_PROCESSORS = 112
"""Of an H200's 132 multiprocessors, those that run clusters of 16, as the driver answers: 7 clusters."""
ISSUE_SHARE = 0.6
"""Part of the issue slots that is assumed to be used."""
LIMITS = {
    ("tvl1 default", "iterate", "loop"): 68,
    ("tvl1 default", "iterate", "around"): 135,
    ("tvl1 default", "iterate_cluster", "loop"): 86,
    ("tvl1 default", "iterate_cluster", "around"): 190,
    ("tvl1 field", "iterate", "loop"): 66,
    ("tvl1 default", "warp_and_linearise", "all"): 700,
    ("brox default", "relax", "loop"): 26,
    ("brox default", "relax", "around"): 80,
    ("brox default", "make_equations", "all"): 750,
}
"""Instructions per pixel and iteration (or sweep) in the loop, per pixel around it, or of the whole kernel (static)."""


class Card(NamedTuple):
    """A GPU from its data sheet: multiprocessors, boost clock in GHz, memory bandwidth in GB/s."""

    name: str
    multiprocessors: int
    clock: float
    bandwidth: float


CARDS = (
    Card("H200", 132, 1.755, 4800),
    Card("H100 SXM", 132, 1.755, 3350),
    Card("A100 SXM", 108, 1.41, 2039),
)


class Resources(NamedTuple):
    """Of a kernel: registers per thread, bytes of stack, spills and static shared memory."""

    registers: int
    stack: int
    spilled: int
    shared: int


def programs() -> dict[str, Program]:
    """The programs of the usual presets."""
    found = {
        f"tvl1 {name}": tvl1_cuda.program(tvl1_parameters.PRESETS[name])
        for name in ("default", "field", "accurate")
    }
    found |= {
        f"brox {name}": brox_cuda.program(brox_parameters.PRESETS[name]) for name in ("default", "opencv")
    }
    return found | {"quantise": quantise.PROGRAM}


def run_nvcc(program: Program, architecture: int) -> tuple[bytes, str]:
    """As `run_nvrtc`, by the nvcc on PATH."""
    arithmetic = "--use_fast_math" if program.fast else "--fmad=false"
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, f"{program.name}.cu"), Path(folder, "cubin")
        source.write_text(program.text())
        finished = subprocess.run(
            ["nvcc", "-std=c++17", arithmetic, f"-arch=sm_{architecture}", "-cubin", "-Xptxas=-v", "-o", cubin, source],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if finished.returncode:
            raise InputError(f"{program.name}: nvcc refuses the CUDA source: {finished.stderr.strip()}")
        return cubin.read_bytes(), finished.stderr


def compile_for(
    program: Program, architecture: int, nvcc: bool = False
) -> tuple[bytes, dict[str, Resources]]:
    """The cubin, and what ptxas says of every kernel."""
    if nvcc:
        code, log = run_nvcc(program, architecture)
    else:
        code, log = run_nvrtc(program, program.text(), f"sm_{architecture}", "--ptxas-options=-v")
    pattern = (
        r"Function properties for (\w+)\s*\n\s*.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes "
        r"spill loads\s*\n.*?Used (\d+) registers(?:.*?(\d+) bytes smem)?"
    )
    found = {
        name: Resources(int(registers), int(stack), int(stores) + int(loads), int(shared or 0))
        for name, stack, stores, loads, registers, shared in re.findall(pattern, log)
    }
    return code, found


def disassembler() -> str | None:
    """nvdisasm on PATH or in its wheel; None where there is none."""
    wheels = [Path(folder) / "nvidia" for folder in sys.path]
    found = [str(path) for folder in wheels for path in folder.glob("*/bin/nvdisasm")]
    return shutil.which("nvdisasm") or next(iter(found), None)


class Counts(NamedTuple):
    """Instructions of a kernel.

    Attributes:
        all: every one of them.
        loop: of the hot loop, the smallest backward branch around two barriers; 0 if there is none.
        loops: of the outermost loops without barriers, in order, each without the longest loop inside it.
    """

    all: int
    loop: int
    loops: tuple[int, ...]


def count_instructions(code: bytes, nvdisasm: str) -> dict[str, Counts]:
    """Instructions of every kernel of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        text = subprocess.run([nvdisasm, "-c", file.name], capture_output=True, text=True, check=True).stdout
    counts = {}
    for name, body in re.findall(r"^\.text\.(\w+):\n(.*?)(?=^\.text\.|\Z)", text, re.S | re.M):
        instructions: list[str] = []
        labels: dict[str, int] = {}
        for line in body.splitlines():
            if label := re.match(r"\s*(\.L\w+):", line):
                labels[label[1]] = len(instructions)
            elif instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
                instructions.append(instruction[1])
        hot, spans = [], []
        for at, instruction in enumerate(instructions):
            target = re.search(r"BRA.*?`\((\.L\w+)\)", instruction)
            start = labels.get(target[1], at + 1) if target else at + 1
            if start < at:
                barriers = sum("BAR.SYNC" in i for i in instructions[start : at + 1])
                if barriers >= 2:
                    hot.append(at + 1 - start)
                elif not barriers:
                    spans.append((start, at + 1))
        used = [i for i in instructions if not i.startswith("NOP")]
        counts[name] = Counts(len(used), min(hot, default=0), tuple(outermost(spans)))
    return counts


def outermost(spans: list[tuple[int, int]]) -> Iterator[int]:
    """Lengths of the spans that lie in no other, each without the longest one inside it."""
    for start, end in spans:
        if not any(a <= start and end <= b and (a, b) != (start, end) for a, b in spans):
            inside = [b - a for a, b in spans if start <= a and b <= end and (a, b) != (start, end)]
            yield end - start - max(inside, default=0)


def measure(name: str, kernel: str, what: str, counts: dict[str, dict[str, Counts]]) -> float:
    """The value that a limit is for."""
    found = counts[name][kernel]
    loop, around = loop_and_around(found)
    return {"loop": loop, "around": around, "all": float(found.all)}[what]


def loop_and_around(found: Counts) -> tuple[float, float]:
    """Instructions per pixel of a tile kernel: in the hot loop, and of all the rest."""
    return found.loop / PIXELS_OF_A_THREAD, (found.all - found.loop) / PIXELS_OF_A_THREAD


# --- predictions -------------------------------------------------------------------------------------------------


class Work(NamedTuple):
    """Of a pair: warp instructions and bytes of device memory."""

    instructions: float
    bytes: float

    def pairs_per_second(self, card: Card) -> tuple[float, float]:
        """What a card's issue slots and its memory allow."""
        slots = card.multiprocessors * 4 * card.clock * 1e9 * ISSUE_SHARE
        return slots / self.instructions, card.bandwidth * 1e9 / self.bytes


def computed_pixels(size: Size, halo: int, tile: int = 64, rows: int = 4) -> int:
    """Pixels that tiles compute: warps whose rows lie outside the frame do nothing."""
    inner = tile - 2 * halo
    across, down = -(-size.width // inner), -(-size.height // inner)
    total = 0
    for row in range(down):
        top = row * inner - halo
        active = sum(top + w < size.height and top + w + rows > 0 for w in range(0, tile, rows))
        total += across * active * rows * tile
    return total


def cluster_pixels(size: Size) -> int:
    """Pixels that a cluster which holds a level computes: those of its warps, which do not overlap."""
    rows = tvl1_cuda.ROWS
    return -(-size.width // tvl1_cuda.TILE) * tvl1_cuda.TILE * (-(-size.height // rows) * rows)


def tvl1_work(counts: dict[str, Counts], size: Size, clusters: bool = False) -> Work:
    """The default preset on rendered frames, as the CPU solver counts iterations and warps.

    With `clusters`, one of them does the iterations of a warp where it can hold a level that is larger than a tile.
    The multiprocessors that they leave idle (`CLUSTER_PROCESSORS`) count as if they worked.

    Every level is taken to have as many iterations and warps as the mean; a launch that is repeated in part because a
    pair stopped inside it costs half a launch more.
    """
    from gpu_frames import moving_frames

    options = tvl1_parameters.PRESETS["default"]
    frames = moving_frames(3, *size)
    counting = tvl1_solver.Solver(options, *size)
    for pair in range(2):
        counting.solve(frames, pair, pair + 1, np.empty((2, *size), np.float32))
    iterations, warped = (float(value) / 2 for value in counting.work)
    sizes = tvl1_cuda.level_sizes(options, size)
    warps = warped / sum(level.height * level.width for level in sizes)
    per_warp = iterations / warped
    halo = tvl1_cuda.HALO
    launches = np.ceil(per_warp / halo) + 0.5
    loop, around = loop_and_around(counts["iterate"])
    # A block warps 64 x 16 pixels with a ring of two in its first loop, and linearises them in its last.
    warp = (
        counts["warp_and_linearise"].loops[0] * (68 * 20) / (64 * 16) + counts["warp_and_linearise"].loops[-1]
    )
    # The flow of a level: read with its ring and filtered, then enlarged by two taps either way, two planes each.
    flow = 2 * (FILL + counts["take_flow"].loops[-1] + 2 * RESAMPLE)
    total, moved = 0.0, 0.0
    for level in sizes:
        area = level.height * level.width
        total += area * (flow + FRAME)
        moved += 4 * area * (10 + 12)
        if tvl1_cuda.fits(level):
            active = -(-level.height // 4) * 4 * 64
            total += warps * active * (loop * per_warp + 440)
            continue
        total += warps * warp * area
        if clusters and tvl1_cuda.clusters_for(options, level):
            held_loop, held_around = loop_and_around(counts["iterate_cluster"])
            idle = CARDS[0].multiprocessors / CLUSTER_PROCESSORS
            total += idle * warps * cluster_pixels(level) * (held_around + held_loop * per_warp)
            moved += 4 * warps * (17 + 14) * area
            continue
        pixels = computed_pixels(level, halo)
        total += warps * launches * pixels * (around + halo * loop)
        moved += 4 * warps * (launches * (11 * pixels + 6 * area) + 14 * area)
    return Work(total / 32, moved)


def brox_work(counts: dict[str, Counts], size: Size) -> Work:
    """The default preset; every sweep is done, so nothing is estimated but instructions from static counts."""
    options, solver = brox_parameters.PRESETS["default"], brox_cuda
    loop, around = loop_and_around(counts["relax"])
    equations = sum(counts["make_equations"].loops)
    total, moved = 0.0, 0.0
    for level in solver.level_sizes(options, size):
        area, inner = level.height * level.width, options.warps * options.inner_iterations
        total += area * (4 * RESAMPLE + FRAME + 3 * counts["derive"].all)
        moved += 4 * area * (10 + 20)
        if solver.fits(level):
            active = -(-level.height // 4) * 4 * 64
            total += inner * active * (loop * options.solver_iterations + 250) + options.warps * active * 250
            continue
        total += options.warps * area * counts["linearise"].all + inner * area * equations
        moved += 4 * (options.warps * 22 * area + inner * 17 * area)
        for sweeps in solver.launches_of(options.solver_iterations):
            pixels = computed_pixels(level, solver.halo(sweeps))
            total += inner * pixels * (around + sweeps * loop)
            moved += 4 * inner * (9 * pixels + 2 * area)
    return Work(total / 32, moved)


# --- the report --------------------------------------------------------------------------------------------------


def report(architectures: tuple[int, ...], check: bool, nvcc: bool = False) -> int:
    """Print everything; 1 if `check` finds a spill or a count above its limit."""
    if not nvcc:
        nvrtc_version()  # InputError with what to install where it is missing
    elif shutil.which("nvcc") is None:
        raise InputError(
            "no nvcc on PATH: install the CUDA toolkit, or leave --nvcc out to compile with NVRTC"
        )
    wrong: list[str] = []
    nvdisasm = disassembler()
    counts: dict[str, dict[str, Counts]] = {}
    for name, program in programs().items():
        for architecture in architectures:
            code, resources = compile_for(program, architecture, nvcc)
            for kernel, used in resources.items():
                print(f"{name:13} sm_{architecture:<3} {kernel:19} {used.registers:3} registers, {used.shared:5} bytes "
                      f"shared, {used.spilled} spilled")  # fmt: skip
                if used.spilled or used.stack:
                    wrong.append(f"{name}: {kernel} spills on sm_{architecture}")
                if used.shared > 48 * 1024:
                    wrong.append(f"{name}: {kernel} has more than 48 KB of static shared memory")
            if architecture == 90 and nvdisasm:
                counts[name] = count_instructions(code, nvdisasm)
    if not nvdisasm:
        print("no nvdisasm (package nvidia-cuda-nvdisasm): instructions were not counted")
    for (name, kernel, what), limit in LIMITS.items() if counts else ():
        value = measure(name, kernel, what, counts)
        print(f"{name:13} {kernel:19} {what:6} {value:6.1f} instructions, limit {limit}")
        if value > limit:
            wrong.append(f"{name}: {kernel}: {value:.1f} instructions ({what}), more than {limit}")
    if counts:
        predict(counts)
    for line in wrong if check else ():
        print(f"WRONG {line}")
    return int(check and bool(wrong))


def predict(counts: dict[str, dict[str, Counts]]) -> None:
    """Print the pairs/s at 340x256 that the counts allow."""
    size = Size(256, 340)
    for name, work in (
        ("tvl1 default", tvl1_work(counts["tvl1 default"], size)),
        ("brox default", brox_work(counts["brox default"], size)),
    ):
        print(
            f"{name}, 340x256: {work.instructions / 1e6:.0f} M warp instructions and {work.bytes / 1e6:.0f} MB a pair"
        )
        for card in CARDS:
            arithmetic, memory = work.pairs_per_second(card)
            print(f"    predicted for {card.name}: {arithmetic:.0f} pairs/s by instructions at {ISSUE_SHARE:.0%} of "
                  f"the issue slots, {memory:.0f} by memory")  # fmt: skip
    work = tvl1_work(counts["tvl1 default"], size, clusters=True)
    arithmetic, memory = work.pairs_per_second(CARDS[0])
    print(f"tvl1 default by clusters of blocks, 340x256: {work.instructions / 1e6:.0f} M warp instructions and "
          f"{work.bytes / 1e6:.0f} MB a pair\n    predicted for {CARDS[0].name}: {arithmetic:.0f} pairs/s by "
          f"instructions, {memory:.0f} by memory; what barriers across a cluster take is not counted")  # fmt: skip


def main() -> int:
    """Count, predict, and check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="fail where a kernel spills or exceeds a limit")
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES, help="architectures, as 90")
    parser.add_argument(
        "--nvcc", action="store_true", help="compile with the toolkit's nvcc instead of NVRTC"
    )
    options = parser.parse_args()
    try:
        return report(tuple(options.arch), options.check, options.nvcc)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
