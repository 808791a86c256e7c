"""Choosing a device, and errors of the driver as the extraction understands them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba.cuda", reason="needs numba-cuda: pip install -e .[cuda]")

from extract_flow import methods
from extract_flow.cuda import device, kernel
from extract_flow.cuda.method import CudaMethod
from extract_flow.flow_method import DeviceMemoryError
from pipeline.codec import codec
from pipeline.errors import InputError


def test_without_a_gpu_auto_takes_the_cpu_and_cuda_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "device_count", lambda: 0)
    assert methods.load("tvl1", "auto").device == "cpu"
    with pytest.raises(InputError, match=r"CUDA_VISIBLE_DEVICES.*--device cpu"):
        methods.load("tvl1", "cuda")


def test_a_device_beyond_the_visible_ones_is_refused_with_those_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device, "device_count", lambda: 2)
    with pytest.raises(InputError, match=r"cuda:0 to cuda:1, found 'cuda:2'"):
        device.select("tvl1", "cuda:2")


@pytest.mark.parametrize("shape", [(0, 2, 9, 11), (3, 2, 9, 11)])
def test_levels_with_a_range_for_each_field_are_those_of_the_flow_that_comes_back(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stub stands for the device: it has flow, and no levels to offer."""
    flow = (np.random.default_rng(0).normal(30, 20, shape)).astype(np.float32)
    gpu = object.__new__(CudaMethod)
    monkeypatch.setattr(gpu, "flow", lambda frames, pairs: flow, raising=False)
    monkeypatch.setattr(
        gpu, "_chunks", lambda *_: pytest.fail("levels were asked of the device"), raising=False
    )
    quantiser = codec().quantiser
    pairs = np.zeros((len(flow), 2), np.int64)
    found = gpu.run(np.zeros((1, 9, 11), np.uint8), pairs, "levels", quantiser)
    expected = quantiser.quantise(flow)
    for name in vars(expected):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name


class DriverError(Exception):
    def __init__(self, code: int) -> None:
        self.code = code


def test_only_the_drivers_out_of_memory_becomes_a_device_memory_error() -> None:
    with pytest.raises(DeviceMemoryError, match="tvl1 of 7 pairs"), device.memory_errors("tvl1 of 7 pairs"):
        raise DriverError(2)
    with pytest.raises(DriverError), device.memory_errors("tvl1"):
        raise DriverError(700)


def test_kernels_ask_for_shared_memory_above_48_kb_and_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(kernel, "SIMULATED", False)
    monkeypatch.setattr(kernel.cuda, "get_current_device", lambda: SimpleNamespace(id=0))
    monkeypatch.setattr(kernel, "allow_shared_memory", lambda *arguments: asked.append(arguments))
    compiled = SimpleNamespace(library=SimpleNamespace(get_cufunc=lambda: SimpleNamespace(handle="kernel")))
    launches: list[Any] = []

    class Dispatcher:
        def __init__(self) -> None:
            self.overloads = {"signature": compiled}

        def compile(self, signature: Any) -> None:
            assert signature == (kernel.F4, kernel.I4)

        def __getitem__(self, configuration: Any) -> Any:
            return lambda *arguments: launches.append((configuration, arguments))

    tested = kernel.Kernel(lambda value, count: None, kernel.F4, kernel.I4)
    tested._dispatcher = Dispatcher()
    for shared in (1000, 100_000, 60_000, 100_000):
        tested.launch((1,), (32,), "stream", 0.5, 3, shared=shared)
    assert asked == [("kernel", 100_000, 0)]
    assert [configuration[3] for configuration, _ in launches] == [1000, 100_000, 60_000, 100_000]
    assert {type(argument).__name__ for argument in launches[0][1]} == {"float32", "int32"}
