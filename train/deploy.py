"""python -m train export: a run's network as ONNX or TorchScript, its outputs compared before the file is kept.

Both take `inputs` float32[N,C,crop,crop] for any N, as `train.volume` builds them, and return `logits` float32[N,K].
Classes and what the input holds are in the file: ONNX's metadata and TorchScript's extra file `two-stream.json`.
"""

from __future__ import annotations

import importlib.util
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline import atomic
from pipeline.errors import InputError, command_errors
from pipeline.options import CONTEXT, from_options, options_of
from pipeline.text import many, printable
from train.options import ExportOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from train.checkpoint import Checkpoint

TOLERANCE = 1e-4
"""Largest difference of a logit from the network's own, as a share of the largest logit (and at least of 1)."""
SAMPLES = (1, 3)
"""Sizes of the batches that are compared."""
ABOUT = "two-stream.json"


@click.command(context_settings=CONTEXT)
@options_of(ExportOptions)
@command_errors
def command(**values: Any) -> None:
    """Write the network of RUN (a name, a folder or a checkpoint) for use without this project.

    The file's outputs are compared with the network's before it is kept.
    """
    options = from_options(ExportOptions, values)
    for path in (options.onnx, options.torchscript):
        if path is not None and path.exists() and not options.overwrite:
            raise InputError(f"{path}: already exists: replace it with --overwrite")
    from train.checkpoint import find_checkpoint, load_checkpoint

    checkpoint = load_checkpoint(find_checkpoint(options.run, options.dataset))
    for path, write in ((options.onnx, write_onnx), (options.torchscript, write_torchscript)):
        if path is not None:
            difference = write(checkpoint, path)
            spec = checkpoint.volume
            click.echo(
                f"saved {printable(str(path))}: inputs float32[N,{spec.channels},{spec.crop},{spec.crop}], logits of "
                f"{many(sum(map(len, checkpoint.heads.values())), 'class')}; largest difference from the network "
                f"{difference:.1e}"
            )


def about(checkpoint: Checkpoint) -> dict[str, str]:
    """What a user of the file must know, as JSON texts: the classes by head, and what the input holds."""
    return {
        "heads": json.dumps({name: list(classes) for name, classes in checkpoint.heads.items()}),
        "volume": json.dumps(checkpoint.volume.as_dict()),
        "checkpoint": checkpoint.digest,
    }


def write_torchscript(checkpoint: Checkpoint, path: Path) -> float:
    """Write a network as TorchScript; the largest difference of its outputs.

    Raises:
        InputError: outputs that differ by more than `TOLERANCE`, or a file that cannot be written.
    """
    import torch

    network = checkpoint.model()
    with atomic.writing(path) as temporary, atomic.disk_errors(path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is frozen, not gone; constants in the trace are meant
            traced = torch.jit.trace(network, sample(checkpoint, 2))
            buffer = io.BytesIO()  # since torch loses the errors of the system
            torch.jit.save(traced, buffer, _extra_files={ABOUT: json.dumps(about(checkpoint))})
            temporary.write_bytes(buffer.getbuffer())
            loaded = torch.jit.load(str(temporary))
        return compare(checkpoint, network, loaded, path)


def write_onnx(checkpoint: Checkpoint, path: Path) -> float:
    """Write a network as ONNX; the largest difference of its outputs in onnxruntime.

    Raises:
        InputError: the extra is not installed, outputs that differ by more than `TOLERANCE`, or a file that cannot be
            written.
    """
    absent = [name for name in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(name)]
    if absent:
        raise InputError(f"--onnx needs {', '.join(absent)}: pip install -c constraints.txt -e '.[onnx]'")
    import onnx
    import onnxruntime
    import torch

    network = checkpoint.model()
    with atomic.writing(path) as temporary, atomic.disk_errors(path):
        program = torch.onnx.export(
            network,
            (sample(checkpoint, 2),),
            input_names=["inputs"],
            output_names=["logits"],
            dynamic_shapes={"inputs": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )
        assert program is not None  # as it is only without dynamo
        model = program.model_proto
        onnx.helper.set_model_props(model, about(checkpoint))
        onnx.save(model, str(temporary))
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])

        def loaded(inputs: Tensor) -> Tensor:
            return torch.from_numpy(session.run(["logits"], {"inputs": inputs.numpy()})[0])

        return compare(checkpoint, network, loaded, path)


def sample(checkpoint: Checkpoint, count: int) -> Tensor:
    """Inputs as large as the network's usual ones: normal noise float32[count,C,crop,crop], the same every time."""
    import torch

    spec = checkpoint.volume
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, spec.channels, spec.crop, spec.crop, generator=generator)


def compare(
    checkpoint: Checkpoint, network: nn.Module, loaded: Callable[[Tensor], Tensor], path: Path
) -> float:
    """The largest difference of a written network's outputs from the network's own, for batches of several sizes.

    Raises:
        InputError: more than `TOLERANCE`.
    """
    import torch

    largest = 0.0
    with torch.inference_mode():
        for count in SAMPLES:
            inputs = sample(checkpoint, count)
            expected, found = network(inputs), loaded(inputs)
            difference = float((found - expected).abs().max())
            if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
                raise InputError(
                    f"{path}: its outputs differ from the network's by {difference:.1e} for a batch of {count}; "
                    "it was not kept"
                )
            largest = max(largest, difference)
    return largest
