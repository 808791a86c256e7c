"""Brox et al. 2004, "High accuracy optical flow estimation based on a theory for warping", as flow method `brox`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from extract_flow import dispatch
from extract_flow.brox.parameters import PRESETS, Parameters

if TYPE_CHECKING:
    from extract_flow.flow_method import FlowMethod

__all__ = ["PRESETS", "Parameters", "create"]


def create(parameters: Parameters, device: str = "auto", threads: int = 1) -> FlowMethod:
    """Brox's method on a device, ready to run; see `dispatch.create` for the arguments and errors."""

    def on_cpu(parameters: Parameters, threads: int) -> FlowMethod:
        from extract_flow.brox.cpu import BroxOnCpu

        return BroxOnCpu(parameters, threads)

    return dispatch.create("brox", parameters, device, threads, on_cpu)
