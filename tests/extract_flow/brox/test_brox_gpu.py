"""Brox and TV-L1 where there is a GPU, and where there is none."""

from __future__ import annotations

import brox_reference
import numpy as np
import pytest

from extract_flow import methods
from pipeline.errors import InputError

device = pytest.importorskip("extract_flow.cuda.device", reason="needs cuda-bindings: pip install -e .[cuda]")


@pytest.mark.parametrize("name", ["tvl1", "brox"])
def test_without_a_gpu_auto_takes_the_cpu_and_cuda_says_what_to_do(name, monkeypatch):
    monkeypatch.setattr(device, "device_count", lambda: 0)
    assert methods.load(name, "auto").device == "cpu"
    with pytest.raises(
        InputError, match=rf"{name} on cuda: no usable NVIDIA GPU.*CUDA_VISIBLE_DEVICES.*--device cpu"
    ):
        methods.load(name, "cuda")


def test_a_device_beyond_the_visible_ones_is_refused_with_those_there_are(monkeypatch):
    monkeypatch.setattr(device, "device_count", lambda: 2)
    with pytest.raises(InputError, match=r"cuda:0 to cuda:1, found 'cuda:2'"):
        device.select("tvl1", "cuda:2")


@pytest.mark.parametrize(("name", "preset"), [("tvl1", "default"), ("tvl1", "field"), ("tvl1", "accurate"),
                                              ("brox", "default"), ("brox", "opencv")])  # fmt: skip
@pytest.mark.parametrize(("height", "width"), [(256, 340), (101, 77), (16, 15)])
def test_a_real_gpu_gives_the_flow_of_the_cpu(name, preset, height, width):
    if not device.available():
        pytest.skip("no usable NVIDIA GPU")
    frame = brox_reference.textured(height, width, seed=1)
    frames = np.stack([frame, brox_reference.moved(frame, 2.2, -1.1)])
    flows = [methods.load(name, device=kind, preset=preset)(frames) for kind in ("cpu", "cuda")]
    # Relaxation 1.99 (opencv) amplifies rounding.
    assert np.abs(flows[0] - flows[1]).mean() < (0.02 if preset == "opencv" else 1e-3)
