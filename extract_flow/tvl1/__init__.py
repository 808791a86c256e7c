"""Our TV-L1 (Zach, Pock, Bischof 2007) behind the interface of `extract_flow.methods`."""

from extract_flow.tvl1.solver import PRESETS, Parameters, create

__all__ = ["PRESETS", "Parameters", "create"]
