"""Sections of benchmarks/gpu.py around the kernels: extraction, OpenCV's CUDA flow, training and scoring."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import gpu_frames
import numpy as np
from gpu_frames import clip, consecutive, moving_frames
from gpu_report import LeftOut, Report, rate
from opencv_cuda_peer import PeerError, measure

PROJECT = Path(__file__).resolve().parents[1]
FRAMES_OF_A_CLIP, CLIPS = 500, 64
"""So many that each of 8 processes with 2 decoding threads opens several, one after the other."""
RUNS = (
    ("tvl1", 1, True), ("tvl1", 2, True), ("tvl1", 4, True), ("tvl1", 8, True), ("tvl1", 8, False), ("brox", 8, True)
)  # fmt: skip
"""Extractions: method, processes, and whether frames are stored."""
EXTRACTION_OPTIONS: tuple[str, ...] = ()
EXTRACTION_TIMEOUT = 200
BATCH_OF_PEER = 16
"""How often the peer's eight pairs stand in the batch that we compute at once."""
MODELS = (("cnn_m_2048", 256), ("resnet50", 64))
"""Networks with the samples of a batch."""
WARM_UP, ITERATIONS = 8, 40
"""Batches that are read before and while a rate is taken."""


def extraction(report: Report, folder: Path) -> None:
    """From video files to shards with 1, 2, 4 and 8 processes for the GPU, with and without frames: the steady rate."""
    from pipeline.outcome import read_outcomes
    from pipeline.paths import OutputPaths

    videos = rendered_videos(folder)
    for name, processes, rgb in RUNS:
        output = folder / f"shards-{name}-{processes}{'' if rgb else '-flow'}"
        command = [sys.executable, "-m", "extract_flow", str(videos), "--output", str(output), "--method", name,
                   "--device", "cuda:0", "--processes", str(processes), *([] if rgb else ["--no-rgb"]),
                   *EXTRACTION_OPTIONS]  # fmt: skip
        what = f"{name}, {processes} processes{'' if rgb else ', flow only'}"
        try:
            finished = subprocess.run(
                command, cwd=PROJECT, capture_output=True, text=True, timeout=EXTRACTION_TIMEOUT, check=False
            )
        except subprocess.TimeoutExpired:
            report.add("extraction", what, f"not done after {EXTRACTION_TIMEOUT} s", False)
            continue
        if finished.returncode != 0:
            report.add("extraction", what, finished.stderr.strip()[-300:], False)
            continue
        outcomes = list(read_outcomes(OutputPaths(output).outcomes).values())
        printed = (finished.stderr + finished.stdout).splitlines()
        said = [
            line for line in printed if line.startswith(("GPU busy", "computing")) or "starting took" in line
        ]
        report.add(
            "extraction", what, f"{steady_rate(outcomes):.0f} pairs/s once it runs", None, "; ".join(said)
        )


def steady_rate(outcomes: Iterable[Any]) -> float:
    """Pairs per second while every process is at work.

    That is from when a quarter of the videos are done until the last one is opened. A video's pairs are taken to be
    computed evenly while it is open; several are open at a time.

    Args:
        outcomes: `pipeline.outcome.Outcome` of each video.
    """
    spans = [(outcome.time - outcome.seconds, outcome.time, outcome.flows) for outcome in outcomes]
    begin, end = sorted(span[1] for span in spans)[len(spans) // 4], max(span[0] for span in spans)
    if end <= begin:  # all are open at once
        begin, end = min(span[0] for span in spans), max(span[1] for span in spans)
    pairs = 0.0
    for opened, done, flows in spans:
        pairs += flows * max(0.0, min(done, end) - max(opened, begin)) / max(1e-9, done - opened)
    return pairs / max(1e-9, end - begin)


def rendered_videos(folder: Path) -> Path:
    """A folder of `CLIPS` copies of a clip of `FRAMES_OF_A_CLIP` frames."""
    try:
        import av
    except ImportError as error:
        raise LeftOut(f"PyAV is missing ({error}): no video can be decoded") from error
    videos = folder / "videos"
    videos.mkdir()
    with av.open(str(videos / "clip00.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = gpu_frames.WIDTH, gpu_frames.HEIGHT, "yuv420p"
        stream.bit_rate = 2_000_000
        for image in clip(FRAMES_OF_A_CLIP):
            picture = np.repeat(image[:, :, None], 3, axis=2)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    for number in range(1, CLIPS):
        shutil.copy(videos / "clip00.mp4", videos / f"clip{number:02}.mp4")
    return videos


def peers(report: Report, folder: Path | None) -> None:
    """OpenCV's CUDA flow, if a folder with it was given."""
    if folder is None:
        raise LeftOut("no --peer FOLDER (benchmarks/opencv_cuda_peer.py prepare makes one)")
    for name, preset in (("tvl1", "field"), ("brox", "opencv")):
        try:
            peer(report, folder, name, preset)
        except PeerError as error:
            report.add("peers", f"OpenCV CUDA {name}", "left out", None, str(error).strip().splitlines()[-1])


def peer(report: Report, folder: Path, name: str, preset: str) -> None:
    """One method of OpenCV, and ours with the same parameters.

    Raises:
        PeerError: OpenCV's fails.
    """
    from extract_flow.methods import load

    frames = moving_frames(9, gpu_frames.HEIGHT, gpu_frames.WIDTH)
    pairs = consecutive(len(frames))[: len(frames) - 1]  # forward only, as the peer is given them
    measured = measure(folder, frames[:-1], frames[1:], name, timeout_s=60)
    seconds = float(np.median(measured.seconds))
    report.add(
        "peers", f"OpenCV {measured.opencv} CUDA {name}, a pair at a time", f"{1 / seconds:.1f} pairs/s"
    )
    ours = load(name, "cuda", preset=preset)
    apart = np.hypot(*(ours.run(frames, pairs) - measured.flow).transpose(1, 0, 2, 3))
    many = np.tile(frames, (BATCH_OF_PEER, 1, 1))
    every = np.concatenate([pairs + len(frames) * i for i in range(BATCH_OF_PEER)])
    for label, work_frames, work in (
        ("a pair at a time", frames[:2], pairs[:1]),
        ("batched", many, every),
    ):
        speed = rate(partial(ours.run, work_frames, work), len(work), lambda: None)
        report.add(
            "peers", f"ours, {name} {preset}, {label}", f"{speed:.1f} pairs/s", None,
            f"{apart.mean():.4f} px from OpenCV's",
        )  # fmt: skip


def training(report: Report, folder: Path, device: str = "cuda") -> None:
    """cnn_m_2048 and resnet50 on stacks of 10 flows: from memory, and fed from shards; how long they wait for data."""
    import torch
    import torch.nn.functional as F

    from pipeline.shard_index import index_shards
    from train.models import build
    from train.recipe import load_recipe

    if device == "cuda" and not torch.cuda.is_available():
        raise LeftOut(f"torch {torch.__version__} sees no GPU")

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    shards = next(iter(sorted(folder.glob("shards-tvl1*"))), None)
    addresses = list(index_shards(shards).values()) if shards else []
    recipe = load_recipe("temporal-stack10")
    for model, batch in MODELS:
        network = build(model, 20, 101, dropout=0.5).to(device)
        optimiser = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
        inputs = torch.randn(batch, 20, 224, 224, device=device)
        labels = torch.randint(101, (batch,), device=device)

        def step(inputs: Any, labels: Any, network: Any = network, optimiser: Any = optimiser) -> None:
            with torch.autocast(device, dtype=torch.bfloat16):
                loss = F.cross_entropy(network(inputs), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

        def forward(inputs: Any = inputs, network: Any = network) -> None:
            with torch.inference_mode(), torch.autocast(device, dtype=torch.bfloat16):
                network(inputs)

        from_memory = rate(partial(step, inputs, labels), batch, wait)
        report.add("training", f"{model}, batches of {batch} from memory", f"{from_memory:.0f} samples/s")
        if addresses:
            fed(report, model, batch, step, recipe, addresses, from_memory, device)
        network.eval()
        scored = rate(forward, batch, wait)
        report.add("training", f"{model}, scoring from memory", f"{scored:.0f} views/s")
        if addresses:
            fed_scoring(report, model, network, recipe_spec(recipe), addresses, scored, device)
    if not addresses:
        raise LeftOut(
            "no shards from the extraction section to read: only the rates from memory were measured"
        )


def fed(
    report: Report, model: str, batch: int, step: Callable[[Any, Any], None], recipe: Any, addresses: list[Any],
    from_memory: float, device: str,
) -> None:  # fmt: skip
    """Samples per second with a loader, and the share of the time in which the network waits for it."""
    import torch

    from pipeline.shard import open_shard
    from train.batches import Item
    from train.loader import DeviceFeed, loading
    from train.sampler import TrainingReader

    spec, workers = recipe_spec(recipe), os.cpu_count() or 1
    items = [Item(open_shard(address), i % 101, 0, "") for i, address in enumerate(addresses)]
    keys = [[(iteration, index) for index in range(batch)] for iteration in range(ITERATIONS + WARM_UP)]
    where, waited = torch.device(device), 0.0
    feed = DeviceFeed(spec, where)
    with loading(TrainingReader(items, spec, recipe), keys, workers, where) as batches:
        for _ in range(WARM_UP):
            next(batches)
        began = time.perf_counter()
        for _ in range(ITERATIONS):
            before = time.perf_counter()
            read = next(batches)
            waited += time.perf_counter() - before
            samples = feed(read)
            step(samples.inputs.flatten(0, 1), samples.label)
        if device == "cuda":
            torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    found, bound = batch * ITERATIONS / seconds, "loader" if waited > 0.1 * seconds else "network"
    report.add(
        "training", f"{model}, fed by {workers} workers", f"{found:.0f} samples/s", None,
        f"{100 * found / from_memory:.0f} % of memory; {100 * waited / seconds:.0f} % of the time without a batch: "
        f"bound by the {bound}",
    )  # fmt: skip


def fed_scoring(
    report: Report, model: str, network: Any, spec: Any, addresses: list[Any], from_memory: float, device: str
) -> None:
    """Views per second of whole videos, decoded by as many workers as there are cores."""
    import torch

    from evaluate.inference import Compute, view_outputs
    from evaluate.views import Views

    def logits(crops: list[torch.Tensor]) -> torch.Tensor:
        with torch.autocast(device, dtype=torch.bfloat16):
            outputs: torch.Tensor = network(torch.cat(crops))
        return outputs

    workers = os.cpu_count() or 1
    began = time.perf_counter()
    done = sum(1 for _ in view_outputs(logits, spec, addresses, Views(), Compute(device, workers=workers)))
    views = 250 * done / (time.perf_counter() - began)
    report.add(
        "training", f"{model}, scoring 25 x 10 views fed by {workers} workers", f"{views:.0f} views/s", None,
        f"{100 * views / from_memory:.0f} % of memory: bound by the "
        + ("network" if views > 0.9 * from_memory else "reading and what surrounds the network"),
    )  # fmt: skip


def recipe_spec(recipe: Any) -> Any:
    """The input volumes of a temporal recipe."""
    from train.volume import VolumeSpec

    shared = {field.name for field in dataclasses.fields(VolumeSpec)} & {
        f.name for f in dataclasses.fields(recipe)
    }
    return VolumeSpec(**{name: getattr(recipe, name) for name in shared} | {"stream": "temporal"})
