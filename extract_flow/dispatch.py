"""Which device a method that has a CPU and a CUDA version runs on."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError

if TYPE_CHECKING:
    from extract_flow.flow_method import FlowMethod


def create(
    name: str, parameters: Any, device: str, threads: int, on_cpu: Callable[[Any, int], FlowMethod]
) -> FlowMethod:
    """The method on a device, ready to run.

    Args:
        name: the method's name; its CUDA version is `extract_flow.NAME.cuda.create(parameters, device)`.
        parameters: its `Parameters`.
        device: "cpu", "cuda", "cuda:N", or "auto", which takes a usable GPU and else the CPU.
        threads: CPU threads over frames and pairs; results do not depend on it.
        on_cpu: makes the CPU version from parameters and threads.

    Raises:
        InputError: an unknown device, no thread, or a GPU that was asked for and cannot be used.
    """
    if threads < 1:
        raise InputError(f"{name}: expected at least 1 thread, found {threads}")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise InputError(f"unknown device {device!r}: choose auto, cpu, cuda or cuda:N")
    if device == "cpu":
        return on_cpu(parameters, threads)
    try:
        gpu = importlib.import_module("extract_flow.cuda.device")
        if device == "auto" and not gpu.available():
            return on_cpu(parameters, threads)
        cuda = importlib.import_module(f"extract_flow.{name}.cuda")
    except ImportError as error:
        if device == "auto":
            return on_cpu(parameters, threads)
        raise InputError(
            f"{name} on {device}: the CUDA version cannot be loaded ({error}); "
            "install it with `pip install -e .[cuda]`, or use --device cpu"
        ) from error
    method: FlowMethod = cuda.create(parameters, device)
    return method
