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
        InputError: an unknown device, or a GPU that was asked for and cannot be used.
    """
    from extract_flow.brox.cpu import BroxOnCpu

    if threads < 1:
        raise InputError(f"threads: expected at least 1, found {threads}")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise InputError(f"device: expected auto, cpu, cuda or cuda:N, found {device!r}")
    return BroxOnCpu(parameters, threads)
