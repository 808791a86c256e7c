"""What becomes of CUDA's errors in training and scoring: a message with what to do, not a traceback."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from evaluate import inference
from evaluate.inference import Compute, view_outputs
from evaluate.views import Views
from pipeline.errors import DeviceFailed
from train.gpu_errors import gpu_errors
from train.volume_spec import VolumeSpec

ILLEGAL = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            "choose a smaller --batch",
        ),
        (RuntimeError(ILLEGAL), "the GPU failed: CUDA error: an illegal memory access was encountered; look"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "the GPU failed: cuDNN error"),
    ],
)
def test_errors_of_cuda_become_messages(error: Exception, message: str) -> None:
    with pytest.raises(DeviceFailed) as caught, gpu_errors("--batch"):
        raise error
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("CUDA error")]
)
def test_errors_of_the_program_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, gpu_errors("--batch"):
        raise error
    assert caught.value is error


def test_scoring_reports_a_gpu_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError(ILLEGAL)

    monkeypatch.setattr(inference, "ahead", fail)
    with pytest.raises(DeviceFailed, match="the GPU failed"):
        next(view_outputs(lambda _: torch.empty(0), VolumeSpec(), [], Views(), Compute()))
