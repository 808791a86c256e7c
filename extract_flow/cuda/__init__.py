"""What the CUDA solvers share.

- `device.py`: the driver: which GPU, memory, streams, graphs, and memory errors as the worker understands them;
- `kernels.py`: CUDA C++ compiled when first used, kept on disk, and launched;
- `images.py`, `images.cu`: frames to float32, and separable resampling from tables of taps (pyramids, blurs, flow);
- `quantise.py`, `quantise.cu`: flow to levels and means, as `pipeline.codec` defines them;
- `method.py`: the `FlowMethod` around a solver: chunks of pairs on two streams, upload, download;
- `common.cuh`: what the kernels of every method share.

Importing it needs no GPU, but cuda-bindings (extra `cuda`).
"""
