"""The scalar update rules of TV-L1: what happens at one pixel, for the CPU's row loops; `cuda/` has them in CUDA C++.

All values are float32. The flow minimises (Zach, Pock, Bischof,
"A duality based approach for realtime TV-L1 optical flow", 2007)

    lambda |rho(u)| + |grad u1| + |grad u2|,      rho(u) = I1(x + u0) + grad I1(x + u0) (u - u0) - I0(x)

by alternating a pointwise step for the data term (`data_step`) and a dual gradient step for the total variation
(`dual_step`). Both are written for variables scaled such that a pixel and iteration cost the fewest operations:

- the image gradient is kept as a unit vector (nx, ny) and rho is divided by the gradient's length, so thresholding
  is one clamp to [-limit, limit], limit = lambda theta |grad I1|; limit 0 switches the data term off;
- the dual variables are theta times those of the paper, so their divergence is added to the flow as it is.
"""

from __future__ import annotations

import math

import numpy as np

from pipeline.compiled import inlined

ZERO = np.float32(0)
HALF = np.float32(0.5)
ONE = np.float32(1)
FLAT = np.float32(np.finfo(np.float32).eps)
"""Squared gradients below this carry no data term (OpenCV's threshold)."""


@inlined
def data_step(residual, limit):  # type: ignore[no-untyped-def]
    """How far to move against the unit gradient: the thresholding step (paper, proposition 3)."""
    return min(max(residual, -limit), limit)


@inlined
def dual_length(step, gradient_x, gradient_y):  # type: ignore[no-untyped-def]
    """What `dual_step` divides by: 1 + tau/theta |grad u|; step is tau/theta."""
    return ONE + step * math.sqrt(gradient_x * gradient_x + gradient_y * gradient_y)


@inlined
def dual_step(dual, tau, gradient, inverse_length):  # type: ignore[no-untyped-def]
    """One component of the dual variable after its gradient step and re-projection (paper, proposition 1)."""
    return (dual + tau * gradient) * inverse_length


@inlined
def inverse_gradient(squared):  # type: ignore[no-untyped-def]
    """1 / |gradient| from its square, 0 where the image is flat."""
    return ONE / math.sqrt(squared) if squared > FLAT else ZERO
