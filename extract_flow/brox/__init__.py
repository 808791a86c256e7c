"""Brox et al. 2004, "High accuracy optical flow estimation based on a theory for warping", as flow method `brox`."""

from __future__ import annotations

import re

from extract_flow.brox.solver import PRESETS, Parameters
from extract_flow.methods import FlowMethod
from pipeline.errors import InputError

__all__ = ["PRESETS", "Parameters", "create"]


def create(parameters: Parameters, device: str = "auto", threads: int = 1) -> FlowMethod:
    """The method on a device, ready to run.

    Args:
        parameters: options, usually one of `PRESETS`.
        device: "cpu", "cuda", "cuda:N", or "auto", which takes a usable GPU and else the CPU.
        threads: CPU threads over frames and pairs; results do not depend on it.

    Raises:
        InputError: an unknown device, no thread, or a GPU that was asked for and cannot be used.
    """
    if threads < 1:
        raise InputError(f"brox: expected at least 1 thread, found {threads}")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise InputError(f"unknown device {device!r}: choose auto, cpu, cuda or cuda:N")
    if device != "cpu":
        try:
            from extract_flow.brox import cuda
            from extract_flow.cuda.device import available
        except ImportError as error:
            if device != "auto":
                raise InputError(
                    f"brox on {device}: the CUDA version cannot be loaded ({error}); "
                    "install it with `pip install -e .[cuda]`, or use --device cpu"
                ) from error
        else:
            if device != "auto" or available():
                return cuda.create(parameters, device)
    from extract_flow.brox.cpu import BroxOnCpu

    return BroxOnCpu(parameters, threads)
