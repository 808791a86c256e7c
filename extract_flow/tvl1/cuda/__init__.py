"""TV-L1 on NVIDIA GPUs, in CUDA C++: the algorithm of `extract_flow.tvl1.solver`, a batch of pairs in every launch.

- `tile.cuh`: iterations of a tile whose state stays in registers;
- `iterate.cu`: large levels, cut into overlapping tiles, and how pairs stop without the host;
- `cluster.cu`: the same by clusters of blocks that hold a level, on GPUs that have them;
- `warp.cu`: warping and linearisation in one launch;
- `level.cu`: a small level, all of it in one block;
- `median.cu`: the flow out of the state, filtered;
- `solver.py`: buffers and the order of the launches.
"""

from extract_flow.cuda.device import available
from extract_flow.tvl1.cuda.solver import create

__all__ = ["available", "create"]
