"""Brox on NVIDIA GPUs, in CUDA C++: the algorithm of `extract_flow.brox.solver`, a batch of pairs in every launch.

- `data.cu`: derivatives of the frames, the linearised data term, the equations of a pixel;
- `relax.cu`: red-black SOR on tiles in registers, and the equations of a whole level;
- `level.cu`: a small level, all of it in one block;
- `solver.py`: buffers, tiles and the order of the launches.
"""

from extract_flow.brox.cuda.solver import create
from extract_flow.cuda.device import available

__all__ = ["available", "create"]
