"""opencv_cuda/check_install.py: what it asks of a flow method holds for OpenCV's CPU methods."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "opencv_cuda" / "check_install.py"
spec = importlib.util.spec_from_file_location("check_install", SCRIPT)
assert spec is not None
assert spec.loader is not None
check_install = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_install)


def test_the_pair_has_the_shift_that_the_check_expects():
    first, second = check_install.shifted_pair()
    flow = cv2.calcOpticalFlowFarneback(first, second, None, 0.5, 5, 13, 10, 5, 1.1, 0)
    assert np.median(flow.reshape(-1, 2), axis=0) == pytest.approx([check_install.SHIFT, 0], abs=0.05)


@pytest.mark.skipif(hasattr(cv2, "cuda_BroxOpticalFlow"), reason="the installed OpenCV has CUDA")
def test_an_opencv_without_cuda_is_told_by_the_classes_that_it_lacks(capsys):
    assert check_install.main() == 1
    assert "cv2 has no cuda_OpticalFlowDual_TVL1, cuda_BroxOpticalFlow" in capsys.readouterr().err
