"""opencv_cuda/build.py: its checks, its configuration, and what a stopped or failed build leaves."""

from __future__ import annotations

import email
import fcntl
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.version import Version

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = PROJECT / "opencv_cuda" / "build.py"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"opencv_cuda_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


build = load(SCRIPT)


@pytest.fixture
def plan(tmp_path):
    return build.Plan(("9.0",), 2, tmp_path / "work", tmp_path / "dist")


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


# CUDA_ARCH

capabilities = st.tuples(st.integers(1, 99), st.integers(0, 9))


@given(st.lists(capabilities, min_size=1), st.sampled_from([",", ";", " ", ", ", "\n"]))
def test_architectures_are_read_from_any_list_sorted_by_number_and_once_each(values, separator):
    text = separator.join(f"{major}.{minor}" for major, minor in values)
    parsed = [tuple(map(int, name.split("."))) for name in build.parse_architectures(text)]
    assert parsed == sorted(set(values))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "9",
        "90",
        "sm_90",
        "9.0a",
        "0.9",
        "9.00",
        "9.0,",
        "9.0;rm -r x",
        "9.0 -DWITH_CUDA=OFF",
        "$(x)",
        "٩.٠",
        "9.0/8.0",
    ],
)
def test_an_architecture_that_is_not_a_compute_capability_is_refused_and_shown(text):
    with pytest.raises(build.BuildError, match="CUDA_ARCH: expected compute capabilities") as caught:
        build.parse_architectures(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("code", "gpu", "runs"),
    [
        ("9.0", "9.0", True),
        ("8.0", "8.6", True),
        ("8.6", "8.0", False),
        ("9.0", "10.0", False),
        ("8.0", "9.0", False),
    ],
)
def test_machine_code_runs_within_its_major_version_upwards(code, gpu, runs):
    assert build._runs_on(code, gpu) is runs


# Configuration files


def test_the_configuration_builds_the_flow_modules_and_not_the_slow_ones():
    options = build.read_configuration()
    modules = options["BUILD_LIST"].split(",")
    assert {"cudaoptflow", "cudalegacy", "optflow", "imgcodecs", "python3"} <= set(modules)
    assert not {"cudafilters", "videoio", "dnn"} & set(modules)
    assert len(modules) == len(set(modules))
    assert options["WITH_CUDA"] == "ON"
    assert options["CUDA_ARCH_PTX"] == ""
    for library in ("CUBLAS", "CUFFT", "CUDNN"):  # or the wheel would need more than NPP beside it
        assert options[f"WITH_{library}"] == "OFF"


def test_switches_of_the_configuration_are_on_or_off():
    for name, value in build.read_configuration().items():
        if name.startswith(("WITH_", "BUILD_")) and name != "BUILD_LIST":
            assert value in {"ON", "OFF"}, name


@pytest.mark.parametrize("line", ["WITH_CUDA", "=ON", "WITH CUDA=ON", "-DWITH_CUDA=ON", "A=1\nA=2"])
def test_a_line_that_is_no_option_or_given_twice_is_named(tmp_path, line):
    file = tmp_path / "configuration.txt"
    file.write_text(f"# comment\n\nFIRST=1\n{line}\n")
    with pytest.raises(
        build.BuildError, match=rf"configuration\.txt:{4 + line.count(chr(10))}: expected one NAME=VALUE"
    ):
        build.read_configuration(file)


def test_option_values_may_hold_equals_signs_and_be_empty(tmp_path):
    file = tmp_path / "configuration.txt"
    file.write_text("A=b=c\nB=\n")
    assert build.read_configuration(file) == {"A": "b=c", "B": ""}


def test_sources_are_pinned_with_digests_and_npp_belongs_to_the_cuda_asked_for():
    sources = build.read_sources()
    assert set(sources) == {"opencv-contrib-python-headless", "nvidia-npp"}
    assert Version(sources["nvidia-npp"][0]).major == build.CUDA_MAJOR
    assert f"cu{build.CUDA_MAJOR}" in build.NPP_LIBRARIES


def test_a_source_without_a_digest_is_refused(tmp_path):
    file = tmp_path / "sources.txt"
    file.write_text("nvidia-npp==13.0.1.2\n")
    with pytest.raises(
        build.BuildError, match=r"sources\.txt:1: expected NAME==VERSION --hash=sha256:DIGEST"
    ):
        build.read_sources(file)


def test_every_tool_is_pinned_and_one_numpy_fits_each_python():
    tools = [Requirement(line) for _, line in build.settings_lines(build.TOOLS)]
    assert all(re.fullmatch(r"==[\d.]+", str(tool.specifier)) for tool in tools)
    for python in ("3.11", "3.12", "3.13", "3.14"):
        fitting = [
            tool for tool in tools if tool.marker is None or tool.marker.evaluate({"python_version": python})
        ]
        assert sum(tool.name == "numpy" for tool in fitting) == 1


# Checks

NVCC = """
case "$*" in
  --version) echo 'Cuda compilation tools, release {release}, V{release}.88' ;;
  --list-gpu-code) echo sm_80 sm_90 ;;
  *) echo '#$ TOP={top}' >&2; {compile} ;;
esac
"""


def nvcc(folder: Path, monkeypatch, release: str = "13.0", compile: str = "exit 0") -> None:
    monkeypatch.setenv("CUDA_HOME", str(folder))
    script(folder / "bin" / "nvcc", NVCC.format(release=release, top=folder, compile=compile))


def test_the_toolkit_is_where_nvcc_says_it_is(tmp_path, monkeypatch):
    nvcc(tmp_path, monkeypatch)
    toolkit = build.check_nvcc(("8.0", "9.0"))
    assert (toolkit.folder, toolkit.version) == (tmp_path, "13.0")


def test_the_trial_kernel_is_compiled_for_every_architecture(tmp_path, monkeypatch):
    nvcc(tmp_path, monkeypatch, compile=f'echo "$@" > {tmp_path}/arguments; cp trial.cu {tmp_path}')
    build.check_nvcc(("8.0", "9.0"))
    arguments = (tmp_path / "arguments").read_text()
    assert "arch=compute_80,code=sm_80" in arguments
    assert "arch=compute_90,code=sm_90" in arguments
    assert "__global__" in (tmp_path / "trial.cu").read_text()


@pytest.mark.parametrize("release", ["12.8", "14.0"])
def test_another_cuda_than_the_configured_one_is_refused_with_both_versions(tmp_path, monkeypatch, release):
    nvcc(tmp_path, monkeypatch, release=release)
    with pytest.raises(build.BuildError, match=rf"expected CUDA 13\.x.*found {re.escape(release)}"):
        build.check_nvcc(("9.0",))


def test_a_kernel_that_does_not_compile_is_told_with_the_reason_and_what_nvcc_knows(tmp_path, monkeypatch):
    nvcc(
        tmp_path,
        monkeypatch,
        compile="echo \"nvcc fatal: Unsupported gpu architecture 'compute_50'\" >&2; exit 1",
    )
    with pytest.raises(build.BuildError, match=r"CUDA_ARCH 5\.0:\n.*compute_50'\n.*it knows sm_80 sm_90"):
        build.check_nvcc(("5.0",))


def test_missing_nvcc_is_told_with_the_places_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "find_nvcc", lambda: None)
    with pytest.raises(build.BuildError, match="nvcc: not found in CUDA_HOME"):
        build.check_nvcc(("9.0",))


def test_too_little_disk_names_folder_need_and_find(plan, monkeypatch):
    monkeypatch.setattr(build.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1.5e9))
    with pytest.raises(build.BuildError, match=rf"expected {build.DISK_GB:g} GB of free disk, found 1\.5 GB"):
        build.check_disk(plan)


def test_what_a_started_build_holds_already_is_not_asked_for_again(plan, monkeypatch):
    plan.work.mkdir()
    with (plan.work / "objects").open("wb") as file:
        file.truncate(int(build.DISK_GB * 1e9))  # sparse
    monkeypatch.setattr(build.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1e9))
    assert "1 GB free" in build.check_disk(plan)


def test_all_missing_things_are_told_at_once(tmp_path, plan, monkeypatch):
    nvcc(tmp_path, monkeypatch, release="12.0")
    monkeypatch.setattr(build.shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    with pytest.raises(build.BuildError, match="step check failed") as caught:
        build.check(plan)
    assert "found 12.0" in str(caught.value)
    assert "of free disk" in str(caught.value)


def test_more_jobs_take_less_time_and_more_architectures_more():
    one = build.expected_minutes(["9.0"], 2)
    assert build.expected_minutes(["9.0"], 4) < one < build.expected_minutes(["8.0", "9.0"], 2)


# Steps


def run_logged(plan, shell: str) -> list[str]:
    return build.run(plan, "compile", ["/bin/sh", "-c", shell])


def test_a_failed_step_is_named_with_its_log_and_the_lines_before_the_end(plan, capsys):
    with pytest.raises(build.BuildError, match="step compile failed") as caught, build.step(plan, "compile"):
        run_logged(plan, "echo the reason; exit 3")
    assert str(plan.log("compile")) in str(caught.value)
    assert "ended with 3" in str(caught.value)
    assert "the reason" in str(caught.value)
    assert "the reason" in plan.log("compile").read_text()


def test_the_compiler_that_failed_is_shown_and_not_what_was_said_after_it(plan):
    said = "echo '[1/2] fine'; echo 'FAILED: brox.o'; echo 'brox.cu: error: no such type'; seq 60; exit 1"
    with pytest.raises(build.BuildError, match=r"FAILED: brox\.o\n.*no such type") as caught:
        run_logged(plan, said)
    assert "fine" not in str(caught.value)
    assert "60" not in str(caught.value)


def test_a_step_that_meets_a_file_system_error_is_named_too(plan):
    with (
        pytest.raises(build.BuildError, match=r"step unpack failed\n.*No space left"),
        build.step(plan, "unpack"),
    ):
        raise OSError(28, "No space left on device")


def test_a_log_keeps_what_earlier_runs_wrote(plan):
    run_logged(plan, "echo first run")
    run_logged(plan, "echo second run")
    text = plan.log("compile").read_text()
    assert text.index("first run") < text.index("second run")


def test_ninjas_counts_are_shown_and_other_output_is_only_logged(tmp_path, capsys):
    with (tmp_path / "log").open("w+") as sink:
        tail = build.follow(["[3/666] Building x\n", "-- noise\n"], sink, every_s=0.0)
        sink.seek(0)
        assert sink.read() == "[3/666] Building x\n-- noise\n"
    assert "3 of 666 files" in capsys.readouterr().out
    assert tail == ["[3/666] Building x", "-- noise"]


def test_commands_do_not_see_variables_that_would_steer_the_build(plan, monkeypatch):
    for name in ("CMAKE_ARGS", "PYTHONPATH", "ENABLE_HEADLESS", "MAKEFLAGS", "CI_BUILD"):
        monkeypatch.setenv(name, "surprise")
    assert not any("surprise" in line for line in run_logged(plan, "env"))


STOPPED = """
import runpy, signal, sys
from pathlib import Path

build = runpy.run_path(sys.argv[1])
signal.signal(signal.SIGTERM, signal.default_int_handler)
plan = build["Plan"](("9.0",), 1, Path(sys.argv[2]), Path(sys.argv[2]))
build["run"](plan, "compile", ["/bin/sh", "-c", "sleep 300 & echo $! > part; mv part child; wait"], Path(sys.argv[2]))
"""


def test_a_stopped_build_leaves_no_process_behind(tmp_path):
    child = tmp_path / "child"
    command = [sys.executable, "-c", STOPPED, str(SCRIPT), str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while not child.exists() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) != 0
    finally:
        process.kill()
        process.wait()
    state = Path(f"/proc/{int(child.read_text())}/stat")
    for _ in range(500):  # it ends, or waits as a zombie for whoever adopted it
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.02)
    pytest.fail("the command's child still runs")


def archive(folder: Path) -> Path:
    source = folder / "opencv-1.0"
    source.mkdir(parents=True)
    (source / "setup.py").write_text("setup")
    with tarfile.open(folder / "opencv-1.0.tar.gz", "w:gz") as tar:
        tar.add(source, "opencv-1.0")
    return folder / "opencv-1.0.tar.gz"


def test_an_unpacked_source_is_kept_with_what_was_compiled_in_it(tmp_path):
    source = build.unpack_source(archive(tmp_path), tmp_path / "build")
    (source / "compiled.o").write_text("object")
    assert build.unpack_source(tmp_path / "opencv-1.0.tar.gz", tmp_path / "build") == source
    assert (source / "compiled.o").exists()


def test_a_half_unpacked_source_is_unpacked_again(tmp_path):
    (tmp_path / "build" / "opencv-1.0").mkdir(parents=True)
    source = build.unpack_source(archive(tmp_path), tmp_path / "build")
    assert (source / "setup.py").read_text() == "setup"


def npp_wheel(folder: Path) -> Path:
    wheel = folder / "nvidia_npp-13.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as files:
        files.writestr("nvidia/cu13/include/npp.h", "NPP's own")
        files.writestr("nvidia/cu13/lib/libnppc.so.13", "library")
    return wheel


def test_the_toolkit_holds_cudas_files_and_the_npp_that_the_wheel_will_require(tmp_path, plan):
    cuda = tmp_path / "cuda"
    for name in ("bin/nvcc", "include/cuda.h", "include/npp.h", "lib64/libcudart_static.a"):
        (cuda / name).parent.mkdir(parents=True, exist_ok=True)
        (cuda / name).write_text("CUDA's")
    toolkit = build.link_toolkit(plan, cuda, npp_wheel(tmp_path))
    assert (toolkit / "include" / "npp.h").read_text() == "NPP's own"
    assert (toolkit / "lib64" / "libnppc.so").read_text() == "library"  # what -lnppc looks for
    for name in ("bin/nvcc", "include/cuda.h", "lib64/libcudart_static.a"):
        assert (toolkit / name).read_text() == "CUDA's"
    (toolkit / "mark").touch()
    assert (build.link_toolkit(plan, cuda, npp_wheel(tmp_path)) / "mark").exists()  # not made again


METADATA = """Metadata-Version: 2.1
Name: opencv_contrib_python_headless
Version: 4.14.0.94
Requires-Dist: numpy>=2; python_version >= "3.9"

Version: this is the description
"""


def test_the_metadata_require_npp_and_tell_the_wheel_from_pypis(tmp_path):
    folder = tmp_path / "opencv_contrib_python_headless-4.14.0.94.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(METADATA)
    renamed = build.rewrite_metadata(folder, "cuda13.0.sm80.90")
    message = email.message_from_string((renamed / "METADATA").read_text())
    version = Version(message["Version"])
    assert renamed.name == f"opencv_contrib_python_headless-{version}.dist-info"
    assert (version.public, version.local) == ("4.14.0.94", "cuda13.0.sm80.90")
    requirements = [Requirement(text) for text in message.get_all("Requires-Dist")]
    assert {requirement.name for requirement in requirements} == {"numpy", "nvidia-npp"}
    npp = next(requirement for requirement in requirements if requirement.name == "nvidia-npp")
    assert str(npp.specifier) == f"=={build.read_sources()['nvidia-npp'][0]}"
    assert message.get_payload() == "Version: this is the description\n"


@pytest.mark.parametrize(
    "foreign", ["libavcodec.so.59", "libcublas.so.13", "libopenblas.so.0", "libnppc.so.12"]
)
def test_libraries_of_this_machine_alone_are_not_allowed_in_the_wheel(foreign):
    assert build.ALLOWED_LIBRARIES.fullmatch(foreign) is None


@pytest.mark.parametrize("common", ["libnppial.so.13", "libc.so.6", "libstdc++.so.6", "ld-linux-x86-64.so.2"])
def test_npp_and_the_runtime_are_allowed(common):
    assert build.ALLOWED_LIBRARIES.fullmatch(common)


# The whole build, with the commands replaced by what they leave behind


@pytest.fixture
def commands(tmp_path, plan, monkeypatch):
    """The steps' commands as called; `fail` names the step that fails."""
    called = SimpleNamespace(steps=[], fail=None)
    source = archive(tmp_path / "pypi").rename(tmp_path / "pypi" / "opencv-1.0.tar.gz")
    files = {"opencv-contrib-python-headless": source, "nvidia-npp": npp_wheel(tmp_path)}
    cuda = build.Toolkit(tmp_path / "cuda", "13.0", plan.architectures)
    for name in ("bin", "include", "lib64"):
        (cuda.folder / name).mkdir(parents=True)

    def run(plan, name, command, cwd=None):
        called.steps.append(name)
        if called.fail == name:
            raise build.BuildError("it broke")
        words = list(map(str, command))
        if name == "tools" and "venv" in words:
            plan.tool_python.parents[1].mkdir(parents=True, exist_ok=True)
        elif name == "compile":
            (cwd / "dist").mkdir(exist_ok=True)
            (cwd / "dist" / "built.whl").touch()
        elif "unpack" in words:
            root = Path(words[words.index("--dest") + 1]) / "opencv-4.14.0.94"
            info = root / "opencv_contrib_python_headless-4.14.0.94.dist-info"
            info.mkdir(parents=True)
            (info / "METADATA").write_text(METADATA)
            (root / "cv2").mkdir()
            (root / "cv2" / "cv2.abi3.so").touch()
        elif "pack" in words:
            info = next(Path(words[-1]).glob("*.dist-info")).name.removesuffix(".dist-info")
            Path(words[words.index("--dest-dir") + 1], f"{info}-cp37-abi3-linux_x86_64.whl").write_text(
                "wheel"
            )
        elif name == "verify":
            (plan.work / "verify").mkdir(exist_ok=True)
        return ["libc.so.6"] if "--print-needed" in words else []

    monkeypatch.setattr(build, "run", run)
    monkeypatch.setattr(build, "check", lambda plan: cuda)
    monkeypatch.setattr(build, "fetch", lambda plan: files)
    return called


def test_a_finished_build_leaves_one_wheel_named_after_cuda_and_architecture(commands, plan):
    wheel = build.build(plan)
    assert list(plan.output.iterdir()) == [wheel]
    assert wheel.name == "opencv_contrib_python_headless-4.14.0.94+cuda13.0.sm90-cp37-abi3-linux_x86_64.whl"
    assert wheel.read_text() == "wheel"


@pytest.mark.parametrize("failing", ["tools", "compile", "finish", "verify"])
def test_a_failing_step_leaves_no_wheel_and_the_next_run_goes_on(commands, plan, failing):
    commands.fail = failing
    with pytest.raises(build.BuildError, match=f"step {failing} failed"):
        build.build(plan)
    assert not plan.output.exists()
    commands.fail, commands.steps[:] = None, []
    assert build.build(plan).exists()
    assert ("tools" in commands.steps) == (failing == "tools")


def test_other_architectures_are_built_in_another_folder(commands, plan):
    build.build(plan)
    both = build.Plan(("8.0", "9.0"), 2, plan.work, plan.output)
    assert build.build(both).name.startswith("opencv_contrib_python_headless-4.14.0.94+cuda13.0.sm80.90-")
    assert len(list(plan.work.glob("sm*"))) == 2


def test_a_second_build_in_the_same_folder_is_refused(commands, plan):
    plan.work.mkdir()
    with (plan.work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(build.BuildError, match="another build runs here"):
            build.build(plan)


# The command


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, env=os.environ | environment
    )


def test_the_configuration_is_printed_with_the_architectures_of_the_environment():
    printed = command("--print-configuration", CUDA_ARCH="9.0 8.0")
    assert printed.returncode == 0
    lines = printed.stdout.splitlines()
    assert "-DCUDA_ARCH_BIN=8.0,9.0" in lines
    assert "-DWITH_CUDA=ON" in lines


def test_wrong_values_end_with_status_1_and_one_line():
    wrong = command("--check", CUDA_ARCH="9.0$(touch x)")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith("error: CUDA_ARCH: expected")
    assert build.main(["--print-configuration", "--jobs", "0"]) == 1
