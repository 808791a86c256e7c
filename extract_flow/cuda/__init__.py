"""What the CUDA solvers share.

- `device.py`: which GPU, how much memory, and memory errors as the worker understands them;
- `kernel.py`: a kernel with its signature and shared memory, launched, simulated or compiled without a GPU;
- `images.py`: frames to float32, and separable resampling from tables of taps (pyramids, blurs, prolongation);
- `sums.py`: sums that do not depend on the order of threads;
- `quantise.py`: flow to levels and means, as `pipeline.codec` defines them;
- `method.py`: the `FlowMethod` around a solver: buffers per frame size, upload, download;
- `ptx.py`: PTX and what ptxas says of it, without a GPU;
- `model.py`: occupancy, bytes and operations, and the pairs/s that they allow.

Importing it needs no GPU, but numba-cuda (extra `cuda`).
"""
