"""Endurance: commands are killed, the disk fails or fills up under them, bits of what they wrote are flipped.

After every kill or fault: each file under its final name is whole and holds what an undisturbed run writes (else it is
"torn"), everything that was there before still is (else "lost"), and the same command again ends well with the same
result. A bit flip must be refused or change nothing (else "silently different"). Nothing may hang, print a traceback or
end by a signal that was not sent. Counts are printed by command; the exit status is 1 if one that must be 0 is not.

    python benchmarks/endurance.py [--kills 500] [--faults 200] [--flips 10000] [--seconds 1500] [--seed 0] [--report F]

With a report, a long run can be made of several with other seeds: counts are those of the whole report.

Commands run in forks of one process that has loaded everything, so that a run takes as long as its work: signals
during the imports are not part of this. Faults come from tests/integration/faults.c, which needs cc.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import ctypes
import dataclasses
import errno
import functools
import hashlib
import importlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

HERE = Path(__file__).resolve().parent
FAULTS = HERE.parent / "tests" / "integration" / "faults.c"
PATIENCE = 120.0
"""Seconds after which a process that should have ended hangs; generous, since other work may share the machine."""
SIGNALS = {"KILL": [9], "TERM": [15], "INT": [2], "INT twice": [2, 2]}
CALLS = {
    "open": (errno.EACCES, errno.EMFILE, errno.ESTALE, errno.EIO),
    "read": (errno.EIO, errno.ESTALE),
    "write": (errno.ENOSPC, errno.EDQUOT, errno.EIO),
    "fsync": (errno.EIO, errno.ENOSPC),
    "rename": (errno.EACCES, errno.EIO, errno.ENOSPC),
    "flock": (errno.ENOLCK,),
}
RECIPE = """model = "resnet18"
width = 0.125
dropout = 0.5
crop = 32
short_side = 36
length = 2
batch = 4
iterations = 4
learning_rate = 0.01
validation = "test"
"""
NAME = "clips"
RECORDS = ("log.jsonl", "tensorboard", "outcomes", "logs")
"""What is appended to as work proceeds, and so differs from run to run."""

Content = dict[str, str]


@dataclass(frozen=True)
class Stage:
    """One command, and the state of the data it is run on; `{root}` in its words is the folder of that state."""

    name: str
    package: str
    words: tuple[str, ...]
    again: tuple[str, ...] = ()
    """Words to add when it is run again after a kill, for commands that replace nothing by themselves."""


TRAIN = ("--dataset", NAME, "--stream", "spatial", "--workers", "0", "--no-tensorboard")
VIEWS = ("--dataset", NAME, "--frames", "2", "--crops", "1")
STAGES = (
    Stage(
        "import",
        "pipeline",
        ("import", "folder", "--videos", "{root}/videos", "--lists", "{root}/lists", "--name", NAME),
    ),
    Stage(
        "extract", "extract_flow", ("--dataset", NAME, "--method", "dis", "--short-side", "36", "--jobs", "1")
    ),
    Stage("pack", "pipeline", ("pack", "--dataset", NAME, "--videos", "3")),
    Stage("unpack", "pipeline", ("pack", "--dataset", NAME, "--unpack")),
    Stage(
        "export",
        "pipeline",
        ("export", "--dataset", NAME, "--layout", "tsn", "--output", "{root}/tsn"),
        ("--overwrite",),
    ),
    Stage(
        "train",
        "train",
        (*TRAIN, "--recipe", "{root}/recipe.toml", "--checkpoint-every", "1"),
    ),
    Stage("score", "evaluate", ("score", *VIEWS, "--workers", "0")),
    Stage("features", "evaluate", ("features", *VIEWS, "--workers", "0"), ("--overwrite",)),
    Stage("fuse", "evaluate", ("fuse", *VIEWS, "--fusion", "none")),
)


# --- running one command ---------------------------------------------------------------------------------------------


@dataclass
class Ended:
    """How a command ended: its exit status or minus a signal (None: it hung), what it printed, and its seconds."""

    status: int | None
    output: str
    seconds: float


def started(stage: Stage, root: Path, fault: Mapping[str, str], again: bool = False) -> int:
    """Fork a process that runs a command on the data in `root`; its number. Output goes to `output_of(root)`.

    Signals wait until the fork is within `try`: one that raised before would run this program's own clean-up there.
    """
    sys.stdout.flush()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    process = os.fork()
    if process:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return process
    try:
        os._exit(in_fork(stage, root, fault, again))
    finally:
        os._exit(1)  # whatever a second signal interrupted, the fork never returns


def output_of(root: Path) -> Path:
    """Where the output of a command goes: beside its data, so that it can still be written when the disk is full."""
    return root.with_name("output")


def in_fork(stage: Stage, root: Path, fault: Mapping[str, str], again: bool) -> int:
    """Run a command as the whole of this process; its exit status."""
    os.setsid()
    descriptor = os.open(output_of(root), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    os.environ["TWO_STREAM_DATA"] = str(root / "data")
    os.environ.update(fault)
    if fault:
        ctypes.CDLL(None).fault_arm()
    words = [word.format(root=root) for word in (*stage.words, *(stage.again if again else ()))]
    sys.argv = [stage.package, *words]
    from pipeline import start

    status = 1
    try:
        start.run(importlib.import_module(f"{stage.package}.__main__").main, f"python -m {stage.package}")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  what an interpreter would print
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    atexit._run_exitfuncs()
    return status


def awaited(process: int, root: Path, begun: float) -> Ended:
    """Wait for a process and everything it started; whatever hangs is killed."""
    status = None
    while time.monotonic() - begun < PATIENCE:
        if status is None:
            found, code = os.waitpid(process, os.WNOHANG)
            status = os.waitstatus_to_exitcode(code) if found else None
        if status is not None and not group_lives(process):
            break
        time.sleep(0.002)
    seconds = time.monotonic() - begun
    if group_lives(process) or status is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
        if status is None:
            os.waitpid(process, 0)
        status = None
    output = output_of(root)
    return Ended(status, output.read_text(errors="replace") if output.exists() else "", seconds)


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def run(stage: Stage, root: Path, fault: Mapping[str, str] | None = None, again: bool = False) -> Ended:
    begun = time.monotonic()
    return awaited(started(stage, root, fault or {}, again), root, begun)


def temporaries(root: Path) -> set[Path]:
    return {
        Path(parent, name)
        for parent, folders, names in os.walk(root)
        for name in (*folders, *names)
        if name.startswith((".tmp-", ".owner"))
    }


def killed(stage: Stage, root: Path, numbers: list[int], after: float | None) -> Ended:
    """Run a command and send it signals after some seconds, or as soon as a temporary file appears (None)."""
    before = temporaries(root)
    begun = time.monotonic()
    process = started(stage, root, {})
    while time.monotonic() - begun < (PATIENCE if after is None else after):
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        if after is None and temporaries(root) - before:
            break
        time.sleep(0.001)
    for turn, number in enumerate(numbers):
        time.sleep(0.03 * turn)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)
    return awaited(process, root, begun)


# --- what is in the data ----------------------------------------------------------------------------------------------


def content(root: Path) -> Content:
    """Everything stored below `root` by name, as digests of what its readers give; "TORN ..." where they refuse it."""
    from pipeline.shard_file import SUFFIX
    from pipeline.shard_index import PACK_SUFFIX, index_shards

    found: Content = {}
    for folder in sorted((root / "data").glob("*/shards/*")):
        index = guarded(lambda folder=folder: index_shards(folder))
        if isinstance(index, str):
            found[f"shards of {folder.name}"] = index
            continue
        for video, address in index.items():
            found[f"shard {folder.name} {video}"] = as_text(
                guarded(lambda address=address: shard_digest(address))
            )
    for parent, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in RECORDS)
        for name in sorted(names):
            path = Path(parent, name)
            if name.startswith(".") or name in RECORDS or name.endswith((SUFFIX_OF_PICTURES, PACK_SUFFIX)):
                continue
            if name.endswith(SUFFIX) and "shards" in path.parts:
                continue
            found[path.relative_to(root).as_posix()] = as_text(guarded(lambda path=path: digest(path)))
    return {name: value for name, value in found.items() if ".parts/" not in name or value.startswith("TORN")}


SUFFIX_OF_PICTURES = ".png"
CHECKPOINT = ".pt"


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def guarded(read: Callable[[], Any]) -> Any:
    from pipeline.errors import InputError

    try:
        return read()
    except InputError as error:
        return f"TORN {error}"


def shard_digest(address: Any) -> str:
    from pipeline.shard import faults, open_shard, parts

    with open_shard(address) as shard:
        if wrong := list(faults(shard)):
            return f"TORN {wrong[0]}"
        whole = hashlib.sha256(repr(sorted(shard.contents.attributes.items())).encode())
        for part in parts(shard):
            for stream in shard.streams(0, len(shard.part(part)), part):
                whole.update(stream)
            if part != "frames":
                for table in (shard.table(part), shard.scale(part), shard.offset(part), shard.mean(part)):
                    whole.update(table.tobytes())
    return whole.hexdigest()


def digest(path: Path) -> str:
    """Digest of what a file's own reader gives, or of its bytes where the project has no reader."""
    from evaluate.score_file import read_scores
    from pipeline.catalog import load_dataset
    from train.checkpoint import load_checkpoint

    if path.suffix == ".pt":
        checkpoint = load_checkpoint(path, optimiser=True)
        about = (
            checkpoint.recipe,
            checkpoint.run,
            checkpoint.iteration,
            checkpoint.requests,
        )
        state = [
            tensor
            for _, buffers in sorted(checkpoint.optimiser["state"].items())
            for tensor in buffers.values()
        ]
        whole = hashlib.sha256(f"{checkpoint.digest} {about}".encode())
        for tensor in state:
            whole.update(b"" if tensor is None else tensor.numpy().tobytes())
        return f"{whole.hexdigest()} {checkpoint.progress}"
    if (
        path.suffix == ".h5"
        and path.parent.name.startswith("scores")
        and not path.name.startswith("features")
    ):
        scores = read_scores(path)
        values = [getattr(scores, field.name) for field in dataclasses.fields(scores)]
        whole = hashlib.sha256()
        for value in values:
            whole.update(value.tobytes() if hasattr(value, "tobytes") else repr(value).encode())
        return whole.hexdigest()
    if path.name == "dataset.json":
        dataset = load_dataset(path.parent.name, path.parent.parent)
        return hashlib.sha256(repr(dataset).encode()).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- the states that commands are run on -----------------------------------------------------------------------------


@dataclass
class Prepared:
    """A command's data before it, what it holds before and after, and how long the command takes."""

    stage: Stage
    before: Path
    there: Content
    expected: Content
    seconds: float


def write_clips(root: Path) -> None:
    """Eight small clips of two classes, UCF-101's lists of them, and a recipe."""
    import av
    import numpy as np

    rng = np.random.default_rng(0)
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for label in ("Left", "Right"):
        for number in range(4):
            name = f"{label}/v_{label}_g{number:02}_c01.avi"
            path = root / "videos" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            texture = rng.integers(40, 215, (12, 24, 3)).astype(np.uint8).repeat(4, 0).repeat(4, 1)
            with av.open(str(path), "w") as container:
                stream = container.add_stream("mjpeg", rate=25)
                stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
                for turn in range(6):
                    moved = np.ascontiguousarray(texture[:, turn if label == "Left" else 12 - turn :][:, :64])
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
                container.mux(stream.encode(None))
            lines["train" if number < 2 else "test"].append(name)
    (root / "lists").mkdir()
    (root / "lists" / "classInd.txt").write_text("1 Left\n2 Right\n")
    train = "".join(f"{name} {1 + name.startswith('Right')}\n" for name in lines["train"])
    (root / "lists" / "trainlist01.txt").write_text(train)
    (root / "lists" / "testlist01.txt").write_text("".join(f"{name}\n" for name in lines["test"]))
    (root / "recipe.toml").write_text(RECIPE)


def copied(source: Path, folder: Path) -> Path:
    """A state of the data under a path that is always the same, since some files record it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    return folder


def prepare(work: Path, wanted: set[str]) -> list[Prepared]:
    """Run every command undisturbed, one after another, and twice, to see what they leave and what differs."""
    prepared = []
    state = work / "state-0"
    state.mkdir()
    write_clips(state)
    for number, stage in enumerate(STAGES, 1):
        root = copied(state, work / "root")
        there = content(root)
        ended = run(stage, root)
        if ended.status != 0:
            raise SystemExit(f"{stage.name} does not run undisturbed: {ended.output}")
        after = content(root)
        if stage.name in wanted:
            kept = work / f"state-{number}"
            shutil.move(root, kept)
            second = run(stage, copied(state, work / "root"))
            other = content(work / "root")
            same = {name: value for name, value in after.items() if other.get(name) == value}
            prepared.append(Prepared(stage, state, there, same, min(ended.seconds, second.seconds)))
            state = kept
        else:
            state = work / f"state-{number}"
            shutil.move(root, state)
        click.echo(f"{stage.name}: {ended.seconds:.1f} s undisturbed, {len(after)} things stored", err=True)
    return prepared


# --- kills and faults ---------------------------------------------------------------------------------------------


class Counts:
    """What was done and what went wrong, by kind; a `report` gets a JSON line for each thing done, after those there.

    So a long run can be made of several, each with a seed of its own and the same report.
    """

    def __init__(self, report: Path | None) -> None:
        self.report = report
        self.done: collections.Counter[str] = collections.Counter()
        self.found: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for line in report.read_text(encoding="utf-8").splitlines() if report and report.exists() else []:
            self._count(**json.loads(line))

    def _count(self, kind: str, count: int, found: Mapping[str, int], how: str = "") -> None:
        self.done[kind] += count
        self.found[kind].update(found)

    def add(self, kind: str, count: int, found: Mapping[str, int], how: str = "") -> None:
        """Count what was done, and what became of it: words of `HARMLESS`, or what is wrong."""
        self._count(kind, count, found)
        if self.report is not None:
            with self.report.open("a", encoding="utf-8") as file:
                line = {"kind": kind, "count": count, "found": dict(found), "how": how}
                file.write(json.dumps(line) + "\n")

    def disturbed(self, kind: str, how: str, ended: Ended, faults: list[tuple[str, str]]) -> None:
        """Count one disturbed command, and say what went wrong."""
        for fault, words in faults:
            click.echo(f"{kind}, {how}: {fault}: {words[-1500:]}", err=True)
        found = collections.Counter(fault for fault, _ in faults)
        found["ended by it" if ended.status != 0 else "withstood"] += 1
        self.add(kind, 1, found, how)

    @property
    def wrong(self) -> int:
        """How often anything went wrong."""
        return sum(
            count for found in self.found.values() for what, count in found.items() if what not in HARMLESS
        )

    def table(self) -> list[str]:
        """A line by kind, and a sum."""
        lines = [f"{count:6,} {kind}: {dict(self.found[kind])}" for kind, count in sorted(self.done.items())]
        return [*lines, f"{self.done.total():6,} in all, {self.wrong} of them wrong"]


HARMLESS = ("ended by it", "withstood", "refused", "changes nothing")


def judged(prepared: Prepared, root: Path, ended: Ended, sent: list[int]) -> list[tuple[str, str]]:
    """What is wrong after a disturbed run, and after the same command again."""
    faults = []
    if ended.status is None:
        faults.append(("hang", ended.output))
    elif ended.status < 0 and -ended.status not in sent:
        faults.append((f"ended by signal {-ended.status}", ended.output))
    if "Traceback" in ended.output:
        faults.append(("traceback", ended.output))
    if len(sent) == 1 and 9 not in sent and (left := temporaries(root)):
        faults.append(("left behind", ", ".join(map(str, left))))
    faults += compared(prepared, content(root), whole=ended.status == 0 and not sent)
    again = run(prepared.stage, root, again=True)
    if again.status != 0:
        faults.append(("not repeatable", again.output))
    faults += [
        (f"{fault} after repeating", words) for fault, words in compared(prepared, content(root), whole=True)
    ]
    if left := temporaries(root):
        faults.append(("left behind after repeating", ", ".join(map(str, left))))
    return faults


def compared(prepared: Prepared, found: Content, whole: bool) -> Iterator[tuple[str, str]]:
    """How the content differs from what was there and from what may be there.

    Until the command is repeated, the best checkpoint may be an earlier one, and a checkpoint may lack the validation
    that is still due; afterwards nothing may differ.
    """
    weights = {value.split()[0] for name, value in prepared.expected.items() if name.endswith(CHECKPOINT)}
    for name, value in found.items():
        if value.startswith("TORN"):
            yield "torn", f"{name}: {value}"
        elif not whole and name.endswith(CHECKPOINT) and value.split()[0] in weights:
            continue
        elif name in prepared.expected and value not in (prepared.expected[name], prepared.there.get(name)):
            yield "silently different", name
    for name in prepared.there:
        if name not in found and (name in prepared.expected or name.startswith("shard")):
            yield "lost", name
    if whole:
        for name, value in prepared.expected.items():
            if found.get(name) != value:
                yield "incomplete", name


def kill(names: list[str], prepared: Prepared, work: Path, draw: random.Random, counts: Counts) -> None:
    root = copied(prepared.before, work / "root")
    name = draw.choice(names)
    after = None if draw.random() < 0.5 else draw.uniform(0, prepared.seconds)
    ended = killed(prepared.stage, root, SIGNALS[name], after)
    how = f"{name} {'at a temporary file' if after is None else f'after {after:.2f} s'}"
    counts.disturbed(
        f"kills of {prepared.stage.name}", how, ended, judged(prepared, root, ended, SIGNALS[name])
    )


def fault(prepared: Prepared, work: Path, draw: random.Random, counts: Counts) -> None:
    """One call fails once."""
    root = copied(prepared.before, work / "root")
    call = draw.choice(list(CALLS))
    number, nth = draw.choice(CALLS[call]), int(2 ** draw.uniform(0, 7))
    ended = run(prepared.stage, root, failing(root, call, number, nth, stays=False))
    how = f"{call} number {nth} fails with {errno.errorcode[number]}"
    counts.disturbed(f"faults under {prepared.stage.name}", how, ended, judged(prepared, root, ended, []))


def full_disk(prepared: Prepared, work: Path, draw: random.Random, counts: Counts) -> None:
    """The disk is full from some write on, an earlier one if the command ended before it."""
    nth = int(2 ** draw.uniform(0, 7))
    while True:
        root = copied(prepared.before, work / "root")
        ended = run(prepared.stage, root, failing(root, "write", errno.ENOSPC, nth, stays=True))
        if ended.status != 0 or nth == 1:
            break
        nth //= 2
    found = judged(prepared, root, ended, [])
    if ended.status == 0:
        found.append(("a full disk unnoticed", ended.output))
    elif not re.search(r"space|disk (is )?full", ended.output):
        found.append(("without the reason", ended.output))
    counts.disturbed(f"full disks under {prepared.stage.name}", f"from write number {nth} on", ended, found)


def failing(root: Path, call: str, number: int, nth: int, stays: bool) -> dict[str, str]:
    """What tests/integration/faults.c reads: the nth call below `root` fails, and with `stays` all that follow."""
    asked = {"CALL": call, "UNDER": f"{root}/", "NUMBER": number, "NTH": nth, "STAYS": int(stays)}
    return {f"FAULT_{name}": str(value) for name, value in asked.items()}


# --- bit flips ------------------------------------------------------------------------------------------------------


def flip_kinds(work: Path) -> dict[str, list[tuple[Path, Path]]]:
    """(state's folder, file) of everything that has a reader, by kind."""
    from pipeline.shard_file import SUFFIX
    from pipeline.shard_index import PACK_SUFFIX

    last, packed = work / f"state-{len(STAGES)}", work / "state-3"
    data = last / "data" / NAME
    kinds = {
        "shards": (last, sorted(data.glob(f"shards/*/*/*{SUFFIX}"))),
        "packs": (packed, sorted(packed.rglob(f"*{PACK_SUFFIX}"))),
        "score files": (last, sorted(data.glob("runs/*/scores/test*.h5"))),
        "checkpoints": (last, sorted(data.glob("runs/*/*.pt"))),
        "dataset records": (last, [data / "dataset.json"]),
        "outcome records": (last, sorted(data.glob("outcomes/*/*.jsonl"))),
    }
    return {kind: [(state, path) for path in paths] for kind, (state, paths) in kinds.items()}


def read_again(kind: str, path: Path) -> str:
    """Everything a file holds, through its reader."""
    from pipeline.outcome import read_outcomes
    from pipeline.shard import ShardAddress
    from pipeline.shard_index import index_pack

    if kind == "shards":
        return shard_digest(ShardAddress(path))
    if kind == "packs":
        return repr([(video, shard_digest(address)) for video, address in index_pack(path).items()])
    if kind == "outcome records":
        found, whole = read_outcomes(path.parent), read_outcomes(path.parent / "whole")
        # A line that is not as it was written is left out.
        return repr(whole) if found == whole else "TORN" if found.items() <= whole.items() else repr(found)
    return digest(path)


def flip(kind: str, path: Path, count: int, seed: int) -> dict[str, int]:
    """Flip single bits of a file, in a process of its own; how often each thing happened."""
    receiver, sender = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(receiver)
        found: collections.Counter[str] = collections.Counter()
        draw = random.Random(seed)
        try:
            if kind == "outcome records":
                shutil.copytree(path.parent, path.parent / "whole")
            original, expected = path.read_bytes(), read_again(kind, path)
            for _ in range(count):
                place = draw.randrange(8 * len(original))
                data = bytearray(original)
                data[place // 8] ^= 1 << place % 8
                path.write_bytes(data)
                value = guarded(lambda: read_again(kind, path))
                refused = "TORN" in value
                found[
                    "refused" if refused else "changes nothing" if value == expected else "silently different"
                ] += 1
            path.write_bytes(original)
        except BaseException:  # noqa: BLE001  it is counted
            traceback.print_exc()
            found["traceback"] += 1
        os.write(sender, json.dumps(found).encode())
        os._exit(0)
    os.close(sender)
    deadline, status = time.monotonic() + PATIENCE + count, None
    while status is None and time.monotonic() < deadline:
        done, code = os.waitpid(process, os.WNOHANG)
        status = code if done else None
        time.sleep(0.01)
    if status is None:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        return {"hang": 1}
    with os.fdopen(receiver, "rb") as answer:
        return json.loads(answer.read() or b"{}") | ({"ended by a signal": 1} if status else {})


def flips(work: Path, total: int, draw: random.Random, until: float, counts: Counts) -> None:
    kinds = flip_kinds(work)
    shares = {"checkpoints": 0.05, "dataset records": 0.1, "outcome records": 0.05, "score files": 0.3}
    for kind, files in kinds.items():
        left = int(total * shares.get(kind, 0.25))
        while left > 0 and time.monotonic() < until:
            state, original = draw.choice(files)
            root = copied(state, work / "root")
            count = min(left, 100)
            path = root / original.relative_to(state)
            counts.add(f"bit flips of {kind}", count, flip(kind, path, count, draw.randrange(1 << 30)))
            left -= count


# --- the command ------------------------------------------------------------------------------------------------------


def with_faults(folder: Path) -> bool:
    """Whether calls can be made to fail; starts this program again under the library that does it."""
    if "ENDURANCE_FAULTS" in os.environ:
        return bool(os.environ["ENDURANCE_FAULTS"])
    compiler = shutil.which("cc")
    library = folder / "faults.so"
    if compiler is not None:
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, FAULTS, "-ldl"], check=True)
        os.environ["LD_PRELOAD"] = " ".join(filter(None, [str(library), os.environ.get("LD_PRELOAD")]))
    os.environ["ENDURANCE_FAULTS"] = str(library) if compiler is not None else ""
    os.environ["ENDURANCE_FOLDER"] = str(folder)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


@click.command()
@click.option("--kills", default=500)
@click.option(
    "--faults", default=200, help="Runs with a full disk are added, a tenth, at least one of each command."
)
@click.option("--flips", "flip_count", default=10_000)
@click.option("--seconds", default=1500.0, help="Stop after so many, whatever is left.")
@click.option("--seed", default=0)
@click.option("--signals", default=",".join(SIGNALS), help="What kills.")
@click.option("--stages", default=",".join(stage.name for stage in STAGES))
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    help="JSON lines of what was done, appended to; the counts that are printed are those of all of it.",
)
def main(
    kills: int,
    faults: int,
    flip_count: int,
    seconds: float,
    seed: int,
    signals: str,
    stages: str,
    report: Path | None,
) -> None:
    """Count what is lost, torn or silently different after kills, faults, full disks and bit flips."""
    folder = Path(os.environ.get("ENDURANCE_FOLDER") or tempfile.mkdtemp(prefix="endurance-"))
    can_fail = with_faults(folder)
    until = time.monotonic() + seconds
    for package in ("pipeline", "extract_flow", "train", "evaluate"):
        importlib.import_module(f"{package}.__main__")
    for module in (
        "train.trainer",
        "evaluate.score",
        "evaluate.features",
        "evaluate.results",
        "pipeline.pack",
        "av",
    ):
        importlib.import_module(module)
    import torch

    torch.set_num_threads(1)  # a pool of threads does not survive the fork
    draw, counts = random.Random(seed), Counts(report)
    try:
        prepared = prepare(folder, set(stages.split(",")))
        turns = itertools.cycle(prepared)
        killing = functools.partial(kill, signals.split(","))
        plan = [(killing, next(turns)) for _ in range(kills if prepared else 0)]
        if can_fail and faults and prepared:
            plan += [(fault, next(turns)) for _ in range(faults)]
            plan += [(full_disk, next(turns)) for _ in range(max(faults // 10, len(prepared)))]
        draw.shuffle(plan)
        share = until - 0.2 * seconds if flip_count else until
        for disturb, one in plan:
            if time.monotonic() > share:
                break
            disturb(one, folder, draw, counts)
        flips(folder, flip_count, draw, until, counts)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        click.echo("\n".join(counts.table()))
    if not can_fail:
        click.echo("no C compiler: calls were not made to fail")
    sys.exit(1 if counts.wrong else 0)


if __name__ == "__main__":
    main()
