"""Our TV-L1 (Zach, Pock, Bischof 2007) behind the interface of `extract_flow.flow_method`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from extract_flow import dispatch
from extract_flow.tvl1.parameters import PRESETS, Parameters

if TYPE_CHECKING:
    from extract_flow.flow_method import FlowMethod

__all__ = ["PRESETS", "Parameters", "create"]


def create(parameters: Parameters, device: str = "auto", threads: int = 1) -> FlowMethod:
    """TV-L1 on a device, ready to run; see `dispatch.create` for the arguments and errors."""

    def on_cpu(parameters: Parameters, threads: int) -> FlowMethod:
        from extract_flow.tvl1.solver import TVL1

        return TVL1(parameters, threads)

    return dispatch.create("tvl1", parameters, device, threads, on_cpu)
