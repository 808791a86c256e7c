"""benchmarks/gpu.py and gpu_counts.py on machines without a GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulator import environment, needs_emulator
from made_shards import make_shard
from torch import nn

from extract_flow.methods import load
from pipeline.outcome import Outcome

pytest.importorskip("cuda.bindings", reason="needs cuda-bindings: pip install -e .[cuda]")
PROJECT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(PROJECT / "benchmarks"))
import gpu  # noqa: E402
import gpu_frames  # noqa: E402
import gpu_pipeline  # noqa: E402
import gpu_report  # noqa: E402

STAND_IN = """
import numpy as np

__version__ = "4.14.0"

class GpuMat:
    values = None
    def upload(self, values):
        self.values = values
    def download(self):
        return np.zeros((*self.values.shape, 2), np.float32)

class cuda:
    GpuMat = GpuMat
    class Stream:
        @staticmethod
        def Null():
            return cuda.Stream()
        def waitForCompletion(self):
            pass
    @staticmethod
    def getCudaEnabledDeviceCount():
        return 1
    class OpticalFlowDual_TVL1:
        @staticmethod
        def create(*parameters):
            return cuda.OpticalFlowDual_TVL1()
        def calc(self, first, second, flow):
            return first
    class BroxOpticalFlow:
        @staticmethod
        def create(*parameters):
            raise NotImplementedError
"""


def run(script: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"benchmarks/{script}.py", *options]
    return subprocess.run(
        command, cwd=PROJECT, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def test_without_a_gpu_it_says_so_and_fails() -> None:
    finished = run("gpu", CUDA_VISIBLE_DEVICES="")
    assert finished.returncode == 1
    assert "no usable NVIDIA GPU" in finished.stderr
    assert "nothing was measured" in finished.stderr


@needs_emulator
@pytest.mark.xdist_group("emulated GPU")
def test_a_section_alone_writes_its_rows_as_json(tmp_path: Path) -> None:
    finished = run("gpu", "--only", "device", "--json", str(tmp_path / "table.json"), **environment())
    assert finished.returncode == 0, finished.stderr[-2000:]
    rows = json.loads((tmp_path / "table.json").read_text())
    assert {row[0] for row in rows} == {"device"}
    assert ["device", "card", "Emulated GPU", "sm_90"] in rows


SMALL = """
import sys
sys.path.insert(0, "benchmarks")
import gpu, gpu_frames, gpu_pipeline, gpu_report
gpu_frames.HEIGHT, gpu_frames.WIDTH = 6, int(sys.argv.pop(1))
gpu_report.SECONDS = 0.01
gpu.SIZES, gpu.SMALL_SIZES, gpu.SMALL_BATCHES = ((20, 28), (1, 1), (6, 70)), ((9, 11),), (8, 9, 3)
gpu.PRESETS = {"tvl1": ("default",), "brox": ("default",)}
gpu.MOST_PAIRS, gpu.PAIRS_OF_BATCHES, gpu.HELD_BYTES, gpu.BATCHES = 2, 4, 4096, (1, 2)
gpu_pipeline.FRAMES_OF_A_CLIP, gpu_pipeline.CLIPS = 3, 4
gpu_pipeline.BATCH_OF_PEER = 1
gpu_pipeline.RUNS = (("tvl1", 1, False), ("brox", 2, True))
gpu_pipeline.EXTRACTION_OPTIONS = ("--short-side", "none", "--jobs", "2", "--warps", "1")
sys.exit(gpu.main())
"""


def rows_in_small(tmp_path: Path, *options: str, width: int = 20) -> dict[tuple[str, str], list[str]]:
    """(value, judgement) by section and what, of the benchmark on small frames on the emulated GPU."""
    finished = subprocess.run(
        [sys.executable, "-c", SMALL, str(width), *options, "--json", str(tmp_path / "table.json")],
        cwd=PROJECT, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-2000:]
    return {(row[0], row[1]): row[2:] for row in json.loads((tmp_path / "table.json").read_text())}


@needs_emulator
@pytest.mark.xdist_group("emulated GPU")
def test_sections_that_compute_flow_find_nothing_wrong_on_the_emulated_gpu(tmp_path: Path) -> None:
    found = rows_in_small(tmp_path, "--only", "correctness", "kernels", "speed", width=70)
    assert ("correctness", "tvl1 default 28x20") in found
    assert ("correctness", "brox: 4 pairs; in batches of 1 and 16; again") in found
    assert ("kernels", "brox: 2 pairs") in found
    assert ("speed", "tvl1, 2 pairs, the next handed over ahead") in found
    assert found["correctness", "tvl1 default 70x6: by clusters and by tiles"] == ["the same bits", "ok"]
    assert "% of the memory's)" in found["kernels", "tvl1 iterate_cluster"][1]
    for kernel in ("tvl1 by tiles iterate", "brox relax"):
        judgement = found["kernels", kernel][1]
        assert "% of the memory's) and " in judgement
        assert "% of the arithmetic's) without halos" in judgement


@needs_emulator
@pytest.mark.xdist_group("emulated GPU")
def test_the_small_run_for_the_sanitizers_is_the_device_and_correctness(tmp_path: Path) -> None:
    found = rows_in_small(tmp_path, "--small")
    assert {section for section, _ in found} == {"device", "correctness"}
    assert found["correctness", "tvl1 default 11x9"][1].startswith("ok")
    assert found["correctness", "brox: 3 pairs; in batches of 1 and 16; again"][1] == "ok"


@needs_emulator
@pytest.mark.xdist_group("emulated GPU")
def test_extraction_is_timed_from_files_to_shards_on_the_emulated_gpu(tmp_path: Path) -> None:
    assert [processes for name, processes, _ in gpu_pipeline.RUNS if name == "tvl1"] == [1, 2, 4, 8, 8]
    found = rows_in_small(tmp_path, "--only", "extraction")
    for what in ("tvl1, 1 processes, flow only", "brox, 2 processes"):
        value, judgement = found["extraction", what]
        assert value.endswith("pairs/s once it runs")
        assert "starting took" in judgement
        assert "GPU busy: " in judgement
        assert "bound by" in judgement


@needs_emulator
@pytest.mark.xdist_group("emulated GPU")
def test_a_peer_that_fails_costs_its_own_row_only(tmp_path: Path) -> None:
    """OpenCV with CUDA is a stand-in, whose Brox fails."""
    (tmp_path / "cv2.py").write_text(STAND_IN)
    found = rows_in_small(tmp_path, "--only", "peers", "--peer", str(tmp_path))
    assert found["peers", "OpenCV 4.14.0 CUDA tvl1, a pair at a time"][0].endswith("pairs/s")
    assert "px from OpenCV's" in found["peers", "ours, tvl1 field, batched"][1]
    assert found["peers", "OpenCV CUDA brox"][0] == "left out"
    assert "NotImplementedError" in found["peers", "OpenCV CUDA brox"][1]


class Apart:
    """A GPU whose Brox is so many pixels from the CPU's."""

    def __init__(self, pixels: float) -> None:
        self.pixels = pixels

    def run(self, frames: Any, pairs: Any, kind: str = "flow", quantiser: Any = None) -> Any:
        flow = load("brox", "cpu").run(frames, pairs) + np.float32(self.pixels)
        return flow if kind == "flow" else quantiser.quantise(flow)


@pytest.mark.parametrize(("pixels", "wrong"), [(1e-5, False), (0.5, True)])
def test_a_difference_is_wrong_unless_the_cpu_itself_moves_as_far_for_less_than_rounding(
    pixels: float, wrong: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "LESS", {"brox": ()})
    report, frames = gpu_report.Report(), gpu_frames.waves(2, 16, 20)
    gpu.compare(report, "it", load("brox", "cpu"), Apart(pixels), frames, ("brox", "default"))
    assert report.wrong == wrong
    assert ("the CPU's own flow moves by" in report.rows[0][3]) == wrong


def test_a_section_is_cut_off_at_its_limit_and_keeps_its_rows(tmp_path: Path) -> None:
    def endless() -> None:
        report.add("slow", "first", "1")
        time.sleep(60)

    report = gpu_report.Report(tmp_path / "table.json")
    gpu_report.section(report, "slow", endless, seconds=1)
    gpu_report.section(report, "next", lambda: report.add("next", "it", "2"))
    rows = json.loads((tmp_path / "table.json").read_text())
    assert [row[1] for row in rows] == ["first", "left out", "it"]
    assert "cut off after 1 s" in rows[1][3]
    assert gpu_report.SECTION_SECONDS == 240


def test_the_steady_rate_is_that_of_the_time_in_which_all_processes_work() -> None:
    """Two videos at a time at 100 pairs/s each, after 10 s in which only one process was there."""
    lone = [(0.0, 5.0, 500), (5.0, 10.0, 500)]
    both = [(10.0 + 5 * i, 15.0 + 5 * i, 500) for i in range(6) for _ in range(2)]
    spans = [*lone, *both, (40.0, 60.0, 500)]  # and one process at the end
    outcomes = [
        Outcome("v", "done", flows=flows, seconds=end - begin, time=end) for begin, end, flows in spans
    ]
    assert gpu_pipeline.steady_rate(outcomes) == pytest.approx(200)
    assert gpu_pipeline.steady_rate(outcomes[:1]) == pytest.approx(100)


def test_networks_are_timed_from_memory_and_fed_from_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU, with small networks in place of the real ones."""
    shards = tmp_path / "shards-tvl1-1"
    for number in range(2):
        make_shard(shards / f"{number}.h5", str(number), flows=11, height=256, width=340)

    def small(name: str, channels: int, classes: int, dropout: float) -> nn.Module:
        return nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(49 * channels, classes))

    monkeypatch.setattr("train.models.build", small)
    monkeypatch.setattr(gpu_pipeline, "MODELS", (("cnn_m_2048", 2), ("resnet50", 1)))
    monkeypatch.setattr(gpu_pipeline, "WARM_UP", 1)
    monkeypatch.setattr(gpu_pipeline, "ITERATIONS", 2)
    monkeypatch.setattr(gpu_report, "SECONDS", 0.01)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    report = gpu_report.Report()
    gpu_report.section(report, "training", lambda: gpu_pipeline.training(report, tmp_path, "cpu"))
    rows = {row[1]: row[2:] for row in report.rows}
    assert not report.wrong, rows
    for model, batch in gpu_pipeline.MODELS:
        assert rows[f"{model}, batches of {batch} from memory"][0].endswith("samples/s")
        assert "bound by the" in rows[f"{model}, fed by 1 workers"][1]
        assert rows[f"{model}, scoring from memory"][0].endswith("views/s")
        assert "bound by the" in rows[f"{model}, scoring 25 x 10 views fed by 1 workers"][1]


def test_training_without_shards_measures_from_memory_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_pipeline, "MODELS", ())
    report = gpu_report.Report()
    gpu_report.section(report, "training", lambda: gpu_pipeline.training(report, tmp_path, "cpu"))
    assert [row[1:3] for row in report.rows] == [("left out", "")]
    assert "no shards from the extraction section" in report.rows[0][3]


def test_kernels_neither_spill_nor_grow_beyond_their_limits() -> None:
    """What ptxas and nvdisasm say of the machine code for every generation."""
    finished = run("gpu_counts", "--check", "--arch", "80", "86", "89", "90", "100")
    if "does not load" in finished.stderr:
        pytest.skip("NVRTC is missing: pip install -e .[dev]")
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    assert "brox default  sm_100 relax" in finished.stdout
    if "no nvdisasm" in finished.stdout:
        pytest.skip("registers and spills are as they should be; nvdisasm is missing: pip install -e .[dev]")
    assert "instructions, limit" in finished.stdout


@pytest.mark.skipif(
    shutil.which("nvcc") is None, reason="no nvcc: another compiler than NVRTC's is not tried"
)
def test_kernels_do_not_spill_with_the_toolkits_compiler_either() -> None:
    """sm_100, where kernels that NVRTC 13.5 keeps in registers have spilled with 13.0."""
    finished = run("gpu_counts", "--check", "--nvcc", "--arch", "100")
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    assert "brox default  sm_100 solve_level" in finished.stdout


def test_the_counts_name_a_missing_compiler(tmp_path: Path) -> None:
    finished = run("gpu_counts", "--nvcc", PATH=str(tmp_path))
    assert finished.returncode == 1
    assert finished.stderr.startswith("error: no nvcc on PATH")
