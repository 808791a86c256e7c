"""Kernels compute the same bits in every process, whether it compiles them or finds them in the cache."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import llvmlite.binding as llvm
import numba
import pytest

from extract_flow import methods
from pipeline import compiled

ROOT = Path(__file__).parents[2]
KERNEL_MODULES = (
    "pipeline.codec_kernels",
    "pipeline.decoder_kernels",
    "pipeline.jpeg_kernel",
    "extract_flow.tvl1.cpu",
    "extract_flow.brox.cpu",
)

EVERY_RESULT = """
import hashlib
import numpy as np
from extract_flow import methods
from pipeline.codec import codec, dequantise

random = np.random.default_rng(5)
image = random.integers(0, 256, (3, 12, 17)).repeat(4, 1).repeat(4, 2)
frames = np.stack([image[0], np.roll(image[0], (1, 2), (0, 1)), image[1] // 2 + image[0] // 2]).astype(np.uint8)
pairs = np.array([[0, 1], [1, 0], [1, 2], [2, 1]])
for name in ("tvl1", "brox"):
    for preset in methods.module(name).PRESETS:
        flows, coded = set(), set()
        for threads in (1, 2):
            flow = methods.load(name, device="cpu", threads=threads, preset=preset).run(frames, pairs)
            quantised = codec().quantiser.quantise(flow)
            back = dequantise(quantised.levels, codec().quantiser.table, quantised.scale, quantised.offset)
            flows.add(hashlib.sha256(flow.tobytes()).hexdigest()[:16])
            coded.add(hashlib.sha256(quantised.levels.tobytes() + back.tobytes()).hexdigest()[:16])
        print(name, preset, *flows, *coded)
"""


def start(cache: Path, seed: int) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if key != "NUMBA_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(cache), "PYTHONHASHSEED": str(seed)}
    return subprocess.Popen(
        [sys.executable, "-c", EVERY_RESULT], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What three processes print: two at once from an empty cache, then one that finds it filled."""
    cache = tmp_path_factory.mktemp("cache")
    compiling = [start(cache, seed) for seed in (1, 2)]
    printed = [process.communicate()[0] for process in compiling]
    return [*printed, start(cache, 3).communicate()[0]]


def test_processes_that_compile_and_processes_that_load_compute_the_same_bits(results):
    lines = [line.split() for line in results[0].splitlines()]
    presets = [(name, preset) for name in ("tvl1", "brox") for preset in methods.module(name).PRESETS]
    assert [tuple(line[:2]) for line in lines] == presets
    assert all(len(line) == 4 for line in lines), "one and two threads differ: " + results[0]
    assert results[0] == results[1] == results[2]


DIGESTS = {
    ("numba 0.68", "LLVM 22", "znver4"): {
        "tvl1 default": "c921d217937e8dc0",
        "tvl1 accurate": "94d831d2704f54f9",
        "tvl1 field": "6d918d40a39ff797",
        "tvl1 default-1": "81722f599ae9bf96",
        "brox default": "85017962c4f7df16",
        "brox accurate": "d89c91d58cbde98e",
        "brox opencv": "8fccf6e3d5eb58cd",
    },
}
"""Flow of each preset. Compilers and instruction sets may differ in how they round."""


def test_the_flow_of_every_preset_has_the_bits_recorded_for_this_instruction_set(results):
    here = (
        f"numba {numba.__version__.rpartition('.')[0]}", f"LLVM {llvm.llvm_version_info[0]}", llvm.get_host_cpu_name()
    )  # fmt: skip
    if here not in DIGESTS:
        pytest.skip(f"digests are recorded for {', '.join(map(str, DIGESTS))}, and this is {here}")
    found = {" ".join(line.split()[:2]): line.split()[2] for line in results[0].splitlines()}
    assert found == DIGESTS[here]


def dispatchers(module):
    """The compiled functions that a module defines."""
    return [value for value in vars(module).values() if hasattr(value, "py_func")]


def called_by(function):
    """The compiled functions that the source of one names, by itself or as an attribute of a module."""
    names, scope = function.py_func.__code__.co_names, function.py_func.__globals__
    values = [scope[name] for name in names if name in scope]
    values += [vars(module)[name] for module in values if isinstance(module, ModuleType) for name in names
               if name in vars(module)]  # fmt: skip
    return [value for value in values if hasattr(value, "py_func")]


def is_inlined(function):
    return bool(function.targetoptions.get("forceinline"))


def rounds_as_written(function):
    """Without fastmath LLVM reorders no float operation, however often it optimises a function."""
    return not function.targetoptions["fastmath"]


def test_every_module_with_kernels_is_known_here():
    holders = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in compiled.PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"^@kernel|\bnjit\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert holders - {"pipeline.compiled"} == set(KERNEL_MODULES)


@pytest.mark.parametrize("module", KERNEL_MODULES)
def test_kernels_call_only_functions_whose_bits_do_not_depend_on_how_they_are_compiled(module):
    """A call that each process resolves to another one of several compiled copies gives different bits."""
    functions = dispatchers(importlib.import_module(module))
    assert sum(not is_inlined(function) for function in functions) >= 1
    for function in functions:
        for callee in called_by(function):
            assert is_inlined(callee) or rounds_as_written(callee), (
                f"{function.__name__} calls {callee.__name__}, which is compiled apart with fastmath"
            )


def test_compiling_is_reported_once_and_only_where_something_is_compiled():
    reports = []

    @compiled.inlined
    def twice(value):
        return 2 * value

    for value in (1, 2, 1.5):
        with compiled.reporting(lambda: reports.append("compiling")):
            twice(value)
            twice(value)
    assert reports == ["compiling", "compiling"]  # for an integer, and for a float


def test_editing_a_rule_that_kernels_call_changes_the_cache_folder(tmp_path, monkeypatch):
    """Numba looks only at the file of the kernel itself."""
    package = tmp_path / "extract_flow"
    package.mkdir()
    (tmp_path / "pipeline").mkdir()
    rules = package / "rules.py"
    rules.write_text("from pipeline.compiled import inlined\n")
    monkeypatch.setattr(compiled, "__file__", str(tmp_path / "pipeline" / "compiled.py"))
    before = compiled.cache_folder()
    (package / "other.py").write_text("nothing compiled\n")
    assert compiled.cache_folder() == before
    rules.write_text("from pipeline.compiled import inlined  # edited\n")
    assert compiled.cache_folder() != before
