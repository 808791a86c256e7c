"""End-point error of every flow method and preset on Middlebury's pairs with ground truth, as a Markdown table.

    python benchmarks/flow_accuracy.py [--data DIR]

The folder holds a folder for each pair with frame10.png, frame11.png and flow10.flo. `opencv-tvl1, reference` is
OpenCV's TV-L1 run as its CUDA code runs: 1 outer and 300 inner iterations, no median filter.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click
import cv2
import numpy as np
import numpy.typing as npt

from extract_flow import methods
from pipeline.errors import InputError

Images = npt.NDArray[np.uint8]
Flow = npt.NDArray[np.float32]
CPU_METHODS = ("tvl1", "brox", "opencv-tvl1", "dis", "farneback")


def middlebury(folder: Path) -> Iterator[tuple[str, Images, Flow]]:
    """Name, frames uint8[2,H,W] and true flow float32[2,H,W] (beyond 1e9 where unknown) of each pair."""
    for pair in sorted(path for path in folder.iterdir() if (path / "flow10.flo").exists()):
        frames = [
            cv2.imread(str(pair / name), cv2.IMREAD_GRAYSCALE) for name in ("frame10.png", "frame11.png")
        ]
        width, height = np.fromfile(pair / "flow10.flo", np.int32, 2, offset=4)
        truth = np.fromfile(pair / "flow10.flo", np.float32, offset=12).reshape(height, width, 2)
        yield pair.name, np.stack(frames), truth.transpose(2, 0, 1)


def end_point_error(flow: Flow, truth: Flow) -> float:
    """Mean distance of flow vectors in pixels, where the truth is known."""
    known = (np.abs(truth) < 1e9).all(axis=0)
    return float(np.hypot(*(flow - truth))[known].mean())


def reference() -> Callable[[Images], Flow]:
    """OpenCV's TV-L1 as its CUDA code runs."""
    opencv = cv2.optflow.createOptFlow_DualTVL1()
    opencv.setOuterIterations(1)
    opencv.setInnerIterations(300)
    opencv.setMedianFiltering(1)
    return lambda frames: opencv.calc(frames[0], frames[1], None).transpose(2, 0, 1)


def scikit_image() -> Callable[[Images], Flow]:
    """scikit-image's TV-L1 at its defaults; it returns (y, x)."""
    from skimage.registration import optical_flow_tvl1

    return lambda frames: optical_flow_tvl1(frames[0], frames[1])[::-1]


def candidates() -> Iterator[tuple[str, Callable[[Images], Flow]]]:
    """Every method that runs on this CPU in every preset, and the references."""
    for name in CPU_METHODS:
        for preset in methods.module(name).PRESETS:
            try:
                method = methods.load(name, device="cpu", preset=preset)
            except InputError as error:
                click.echo(f"left out: {name}, {preset}: {error}", err=True)
                continue
            yield f"{name}, {preset}", lambda frames, method=method: method(frames)[0]  # type: ignore[misc]
    yield "opencv-tvl1, reference", reference()
    yield "scikit-image tvl1", scikit_image()


def changed(parameters: Sequence[str]) -> Iterator[tuple[str, Callable[[Images], Flow]]]:
    """TV-L1's default preset with NAME=VALUE changed."""
    values = {name: float(value) for name, _, value in (text.partition("=") for text in parameters)}
    method = methods.load("tvl1", device="cpu", **values)
    yield f"tvl1, default, {', '.join(parameters)}", lambda frames: method(frames)[0]


@click.command()
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(os.environ.get("TWO_STREAM_TEST_DATA", "../shared/data")) / "flow" / "middlebury",
    help="Folder with a folder for each pair.",
)
@click.option(
    "--parameter", "parameters", multiple=True, metavar="NAME=VALUE",
    help="Only tvl1's default preset, with this number changed, as theta=0.4.",
)  # fmt: skip
def main(data: Path, parameters: tuple[str, ...]) -> None:
    """Print the table."""
    pairs = list(middlebury(data))
    if not pairs:
        raise click.ClickException(
            f"{data}: expected folders with frame10.png, frame11.png and flow10.flo, found none"
        )
    print("| method, preset | " + " | ".join(name for name, _, _ in pairs) + " | mean |")
    print("|---" * (len(pairs) + 2) + "|")
    for name, flow in changed(parameters) if parameters else candidates():
        errors = [end_point_error(flow(frames), truth) for _, frames, truth in pairs]
        print(f"| {name} | " + " | ".join(f"{e:.3f}" for e in [*errors, statistics.mean(errors)]) + " |")


if __name__ == "__main__":
    main()
