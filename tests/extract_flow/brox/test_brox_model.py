"""The model of the CUDA kernels: it counts what the solver launches, and reacts to the device as it should."""

from __future__ import annotations

import importlib.util

import pytest

from extract_flow.brox.parameters import PRESETS

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("numba_cuda") is None,
    reason="numba-cuda is not installed (pip install -e .[cuda])",
)


def test_every_sweep_of_every_level_is_counted():
    from extract_flow.brox import cuda, model, solver
    from extract_flow.cuda.model import H100

    parameters = PRESETS["default"]
    inner = parameters.warps * parameters.inner_iterations
    expected = 0
    for width, height in solver.level_sizes(340, 256, parameters.scale, parameters.outer_iterations):
        plan = cuda.plan_level(width, height, parameters.solver_iterations, H100.block_shared_bytes)
        expected += inner * len(plan.launches)
    works = list(model.work_of_a_pair(H100, parameters, 256, 340))
    assert sum(work.launches for work in works if work.kernel == "relax_tiles") == expected
    tiled = sum(work.pixels for work in works if work.kernel == "relax_tiles")
    assert tiled > inner * 340 * 256


def test_the_prediction_follows_the_device_and_the_work():
    from extract_flow.brox.model import pairs_per_second, predict
    from extract_flow.cuda.model import A100, H200

    def rate(device, preset, height=256, width=340):
        return pairs_per_second(predict(device, PRESETS[preset], height, width))

    assert rate(H200, "default") > rate(A100, "default")
    assert rate(H200._replace(multiprocessors=66, bandwidth=2400), "default") == pytest.approx(
        rate(H200, "default") / 2, rel=1e-6
    )
    assert rate(H200, "accurate") < rate(H200, "default")
    assert 3 < rate(H200, "default") / rate(H200, "default", 512, 680) < 5


def test_the_issues_aim_is_within_the_model():
    from extract_flow.brox.model import pairs_per_second, predict
    from extract_flow.cuda.model import H200

    assert pairs_per_second(predict(H200, PRESETS["default"], 256, 340)) > 2 * 2000


@pytest.mark.parametrize("kernel", ["relax_tiles", "solve_level"])
def test_tile_kernels_hold_a_block_on_every_multiprocessor(kernel):
    from extract_flow.brox.model import predict
    from extract_flow.cuda.model import A10, A100, H100

    for device in (A10, A100, H100):
        by_name = {
            prediction.kernel: prediction for prediction in predict(device, PRESETS["default"], 256, 340)
        }
        assert by_name[kernel].occupancy.blocks >= 1
