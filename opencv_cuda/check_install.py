"""Check that the installed OpenCV has CUDA flow: `python check_install.py`, with the Python that it is installed for.

Without a GPU it checks that the classes are there and can be created; with one, that each finds a known shift.
"""

from __future__ import annotations

import sys

import cv2
import numpy as np

METHODS = ("OpticalFlowDual_TVL1", "BroxOpticalFlow", "FarnebackOpticalFlow")
# Farneback makes CUDA streams when it is created, so it alone needs a GPU for that.
CREATED_WITHOUT_GPU = METHODS[:2]
SHIFT = 2  # pixels to the right


def shifted_pair(height: int = 96, width: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Two uint8[H,W] images of one smooth texture, the second moved by SHIFT."""
    noise = np.random.default_rng(0).uniform(0, 255, (height, width + SHIFT)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    texture = ((smooth - smooth.min()) * (255 / np.ptp(smooth))).astype(np.uint8)
    return texture[:, SHIFT:].copy(), texture[:, :width].copy()


def median_flow(name: str) -> tuple[float, float]:
    """The median (x, y) flow that a CUDA method finds between the two images of `shifted_pair`."""
    images = []
    for image in shifted_pair():
        images.append(cv2.cuda.GpuMat())
        # Brox alone takes float images, with values in 0..1.
        images[-1].upload(image.astype(np.float32) / 255 if name == "BroxOpticalFlow" else image)
    flow = getattr(cv2, f"cuda_{name}").create().calc(images[0], images[1], None).download()
    x, y = np.median(flow.reshape(-1, 2), axis=0)
    return float(x), float(y)


def main() -> int:
    print(f"OpenCV {cv2.__version__} from {cv2.__file__}", flush=True)
    missing = [f"cuda_{name}" for name in METHODS if not hasattr(cv2, f"cuda_{name}")]
    if missing:
        print(f"error: cv2 has no {', '.join(missing)}: it was built without CUDA flow", file=sys.stderr)
        return 1
    image = shifted_pair()[0]
    written, stream = cv2.imencode(".jpg", image)
    decoded = cv2.imdecode(stream, cv2.IMREAD_GRAYSCALE) if written else None
    if decoded is None or decoded.shape != image.shape:
        print("error: cv2 cannot write and read a JPEG image", file=sys.stderr)
        return 1
    if cv2.cuda.getCudaEnabledDeviceCount() <= 0:
        for name in CREATED_WITHOUT_GPU:
            getattr(cv2, f"cuda_{name}").create()
        print(f"has cv2.cuda_{', cv2.cuda_'.join(METHODS)}; no usable GPU here, so no flow was computed")
        return 0
    failed = False
    for name in METHODS:
        x, y = median_flow(name)
        wrong = abs(x - SHIFT) > 0.25 or abs(y) > 0.25
        failed |= wrong
        print(f"{name}: median flow ({x:.2f}, {y:.2f}), expected ({SHIFT}, 0){': WRONG' if wrong else ''}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
