"""The CUDA kernels and the host code around them on an emulated GPU, against the CPU solvers."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest
from emulator import needs_emulator, run

from extract_flow.tvl1.parameters import PRESETS

pytestmark = [needs_emulator, pytest.mark.xdist_group("emulated GPU")]
CASES = Path(__file__).with_name("emulated_cases.py")
HALO = 4
GROUPS = (
    ("tvl1 default", "tvl1 default-1"), ("tvl1 field",), ("tvl1 accurate",), ("stops", "choices"),
    ("brox default", "brox tiles", "brox one launch", "brox many launches", "brox opencv", "brox one pixel",
     "brox flat"),
    ("levels", "quantisers", "resampling", "repeatable", "overlapping", "not_finite", "leaks", "graphs", "attributes",
     "out_of_memory", "refusals"),
)  # fmt: skip
"""Cases that share a process."""


@functools.cache
def group_found(group: tuple[str, ...]) -> dict[str, Any]:
    return dict(run(CASES, *group))


def found(name: str) -> Any:
    """What emulated_cases.py finds in a case."""
    return group_found(next(group for group in GROUPS if name in group))[name]


@pytest.mark.parametrize("size", ["1x1", "5x300", "85x64", "341x255"])
@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_tvl1_preset_gives_the_flow_of_the_cpu_on_every_size(preset: str, size: str) -> None:
    result = found(f"tvl1 {preset}")[size]
    assert result["mean"] < 1e-5
    assert result["most"] < 1e-3
    assert result["flow"] > 0.5 or size == "1x1"
    assert result["equal"], "clusters of blocks and tiles give different bits"
    assert (result["clusters"] > 0) == (result["small"] < result["levels"])


def test_the_sizes_reach_levels_in_one_block_and_levels_in_several_tiles() -> None:
    by_size = found("tvl1 default")
    assert 0 < by_size["341x255"]["small"] < by_size["341x255"]["levels"]
    assert by_size["5x300"]["small"] == 0
    assert by_size["1x1"]["small"] == 1


def test_pairs_stop_where_the_cpu_does_inside_at_the_end_of_and_after_a_launch() -> None:
    runs = found("stops")
    for size in ([40, 50], [50, 70]):
        due = [run["due"] for run in runs if run["size"] == size]
        assert {stop % HALO for stops in due for stop in stops} == set(range(HALO))
        assert any(first // HALO != second // HALO for first, second in due), "no two pairs stop apart"
    for result in runs:
        assert result["apart"] < 1e-4 < result["next_best"], result
        assert result["equal"], "clusters and tiles stop apart"


def test_clusters_are_used_where_the_device_has_them_and_they_give_the_bits_of_tiles() -> None:
    result = found("choices")
    assert all(run["equal"] for run in result.values())
    assert result["with clusters"]["clusters"] > 0
    for device in ("without", "with too few for a cluster", "with clusters that are wrong"):
        assert result[device]["clusters"] == 0
    assert [bool(run["notes"]) for run in result.values()] == [False, False, False, True]
    assert result["with clusters that are wrong"]["notes"] == [
        "tvl1: on this GPU clusters of blocks give another flow than tiles do; tiles are used"
    ]


@pytest.mark.parametrize(
    "name", ["default", "tiles", "one launch", "many launches", "opencv", "one pixel", "flat"]
)
def test_brox_gives_the_flow_of_the_cpu(name: str) -> None:
    result = found(f"brox {name}")
    assert result["mean"] < 1e-5
    assert result["most"] < 1e-3
    assert (result["flow"] > 0.1) != (name == "one pixel")


def test_levels_from_the_device_are_those_of_the_flow() -> None:
    assert found("levels") == dict.fromkeys(("default", "field", "paper", "no pairs"), True)


def test_quantisation_on_the_device_is_the_codecs_bit_for_bit() -> None:
    names = ("default", "high-fidelity", "field", "paper", "refused")
    assert found("quantisers") == dict.fromkeys(names, True)


def test_resampling_is_the_product_with_its_matrices() -> None:
    assert found("resampling")["difference"] < 1e-4


def test_a_pairs_bits_do_not_depend_on_the_other_pairs_or_the_run() -> None:
    assert found("repeatable") == {"again": True, "alone": True, "chunks": True}


def test_batches_may_be_handed_over_before_earlier_ones_are_fetched() -> None:
    assert found("overlapping") == {"equal": True, "other": True}


def test_a_field_that_is_not_finite_is_an_error_of_its_own_batch_only() -> None:
    assert found("not_finite") == {"raised": True, "good": True}


def test_a_smaller_chunk_is_found_when_memory_runs_out_and_remembered() -> None:
    result = found("out_of_memory")
    assert result["equal"]
    assert 1 <= result["remembered"] < 8
    assert result["refused"] > 0
    assert result["refused_again"] == 0
    assert "1 pairs of 128x128" in result["message"]


def test_a_method_that_is_gone_leaves_nothing_on_the_device() -> None:
    left = found("leaks")
    assert left["bytes"] == left["streams"] == left["graphs"] == left["pinned"] == 0


def test_a_chunk_that_was_recorded_takes_one_call() -> None:
    assert found("graphs") == {"launches": 0, "graph_launches": 3}


def test_a_worker_learns_the_devices_and_the_batch() -> None:
    assert found("attributes") == {"device": "cuda:0", "count": 1, "pairs": 128}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("nothing visible", r"no usable NVIDIA GPU is visible: .*CUDA_VISIBLE_DEVICES, which is ''"),
        ("old driver", r"the driver is for CUDA 12\.8, expected 13\.0 or later"),
        ("mismatch", r"no usable NVIDIA GPU is visible: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
        ("full", r"cuda:0 cannot be used \(CUDA_ERROR_OUT_OF_MEMORY.*nvidia-smi"),
        ("exclusive", r"cuda:0 cannot be used \(CUDA_ERROR_DEVICE_UNAVAILABLE.*--processes 1"),
        ("other code", r"tvl1: the driver \(CUDA 13\.0\) does not load .* NVRTC 13\.0 compiled "
                       r"\(CUDA_ERROR_UNSUPPORTED_PTX_VERSION.*nvidia-cuda-nvrtc==13\.0\."),
        ("no room", r"tvl1: the driver .* \(CUDA_ERROR_OUT_OF_MEMORY.*fills its memory"),
    ],
)  # fmt: skip
def test_a_gpu_that_cannot_be_used_is_named_with_the_reason_and_what_to_do(answer: str, reason: str) -> None:
    message, *automatic = found("refusals")[answer]
    assert re.search(reason, message), message
    assert "--device cpu" in message
    assert automatic in ([], ["cpu"])
    assert found("refusals")["none"] == ["cuda:0"]
