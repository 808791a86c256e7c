"""MatConvNet's CNN-M-2048 (imagenet-vgg-m-2048.mat; Chatfield et al. 2014) as weights of cnn_m_2048.

MatConvNet stores filters as [height, width, in, out], takes RGB in 0..255 minus an average colour, and correlates as
torch does. Its response normalisation is x / (kappa + alpha * sum x^2)^beta, where torch divides alpha by n.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.errors import InputError, unreadable
from pipeline.text import first_line
from train.volume_spec import COLOUR_MEAN, COLOUR_STD

LAYERS = {
    "conv1": "conv1",
    "conv2": "conv2",
    "conv3": "conv3",
    "conv4": "conv4",
    "conv5": "conv5",
    "fc6": "full6",
    "fc7": "full7",
    "fc8": "full8",
}
"""MatConvNet's layer -> that of `CnnM2048`."""

GEOMETRY = {
    "conv1": (2, 0),
    "conv2": (2, 1),
    "conv3": (1, 1),
    "conv4": (1, 1),
    "conv5": (1, 1),
    "fc6": (1, 0),
    "fc7": (1, 0),
    "fc8": (1, 0),
}
"""Layer -> (stride, padding) of `CnnM2048`."""

RESPONSE_NORM = (5.0, 2.0, 1e-4, 0.75)
"""n, kappa, alpha, beta."""

Array = npt.NDArray[Any]


def read_matconvnet(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Weights of cnn_m_2048 from a MatConvNet file, and one line for each thing that was taken or left.

    The average colour that the file subtracts, and the mean and deviation that recipes normalise with by default
    (`COLOUR_MEAN`, `COLOUR_STD`), are folded into conv1, exactly, since conv1 has no padding.

    Raises:
        InputError: not a MatConvNet file, or the network in it is another: the message lists what differs.
    """
    content = _load(path)
    layers = [_fields(layer) for layer in np.ravel(content["layers"])]
    if wrong := differences(layers):
        raise InputError(
            f"{path}: expected the layers of CNN-M-2048 (imagenet-vgg-m-2048.mat), found others:",
            *(f"  {line}" for line in wrong[:10]),
        )
    colour = _average_colour(path, content)
    weights: dict[str, Tensor] = {}
    lines = []
    for layer in layers:
        theirs = str(layer.get("name", ""))
        if theirs not in LAYERS:
            continue
        ours = LAYERS[theirs]
        filters, biases = _parameters(layer)
        tensor = np.ascontiguousarray(filters.transpose(3, 2, 0, 1), np.float32)
        if theirs == "conv1":
            tensor, biases = _folded(tensor, biases, colour)
        weights[f"{ours}.weight"] = torch.from_numpy(
            tensor.reshape(len(tensor), -1) if theirs.startswith("fc") else tensor
        )
        weights[f"{ours}.bias"] = torch.from_numpy(np.ascontiguousarray(biases, np.float32))
        lines.append(f"{theirs} {list(filters.shape)} -> {ours} {list(weights[f'{ours}.weight'].shape)}")
    shown = ", ".join(f"{value:.3f}" for value in colour)
    lines.append(
        f"average colour ({shown}) RGB: folded into conv1, for the colour mean and deviation of recipes"
    )
    return weights, tuple(lines)


def differences(layers: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each way in which a file's layers are not those of CNN-M-2048."""
    by_name = {str(layer.get("name", "")): layer for layer in layers}
    wrong = [f"no layer {name}" for name in LAYERS if name not in by_name]
    for name, (stride, padding) in GEOMETRY.items():
        layer = by_name.get(name, {})
        for what, expected in (("stride", stride), ("pad", padding)):
            found = set(np.ravel(layer.get(what, expected)).tolist())
            if found != {expected}:
                wrong.append(f"{name}: {what} {sorted(found)}, expected {expected}")
    norms = [layer for layer in layers if str(layer.get("type", "")) in ("normalize", "lrn")]
    if len(norms) != 2:
        wrong.append(f"{len(norms)} response normalisations, expected 2")
    for layer in norms:
        param = np.ravel(layer.get("param", ())).tolist()
        if len(param) != 4 or not np.allclose(param, RESPONSE_NORM, rtol=1e-6):
            wrong.append(f"{layer.get('name')}: param {param}, expected {list(RESPONSE_NORM)}")
    pools = [layer for layer in layers if str(layer.get("type", "")) == "pool"]
    if len(pools) != 3:
        wrong.append(f"{len(pools)} poolings, expected 3")
    for layer in pools:
        method = str(layer.get("method", "max"))
        size, step = (set(np.ravel(layer.get(key, ())).tolist()) for key in ("pool", "stride"))
        # Rounding up, as in Caffe, is padding at the bottom and on the right, or none where nothing is left over.
        pads = np.ravel(layer.get("pad", 0)).tolist()
        if method != "max" or size != {3} or step != {2} or pads not in ([0], [0] * 4, [0, 1, 0, 1]):
            wrong.append(f"{layer.get('name')}: {method} pooling of {size}, stride {step}, pad {pads}")
    return wrong


def _load(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content: dict[str, Any] = loadmat(str(path), struct_as_record=True, squeeze_me=False)
    except OSError as error:
        if error.errno is not None:  # else SciPy's own, about what it read
            raise unreadable(path, error) from error
        raise InputError(
            f"{path}: expected a MATLAB file until version 7.2, found {first_line(error)}"
        ) from error
    except (MatReadError, ValueError, TypeError, NotImplementedError) as error:
        raise InputError(
            f"{path}: expected a MATLAB file until version 7.2, found {first_line(error)}"
        ) from error
    if isinstance(content.get("net"), np.ndarray):
        content = _fields(content["net"])
    if "layers" not in content:
        raise InputError(f"{path}: expected MatConvNet's `layers`, found {', '.join(content) or 'nothing'}")
    return content


def _fields(struct: Any) -> dict[str, Any]:
    """A MATLAB struct as a mapping; cells of one element and texts are unwrapped."""
    while isinstance(struct, np.ndarray) and struct.dtype == object and struct.size == 1:
        struct = struct.item()
    if not isinstance(struct, np.ndarray) or struct.dtype.names is None or struct.size != 1:
        return {}
    record = struct.reshape(-1)[0]
    return {name: _plain(record[name]) for name in struct.dtype.names}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind == "U":
        return str(value.reshape(-1)[0]) if value.size else ""
    return value


def _parameters(layer: Mapping[str, Any]) -> tuple[Array, Array]:
    """Filters [h,w,in,out] and biases [out] of a layer: the cell `weights`, or in older files two fields."""
    if "weights" in layer:
        filters, biases = np.ravel(layer["weights"])[:2]
    else:
        filters, biases = layer["filters"], layer["biases"]
    filters = np.asarray(filters, np.float32)
    return filters.reshape(*filters.shape, *([1] * (4 - filters.ndim))), np.ravel(biases).astype(np.float32)


def _average_colour(path: Path, content: Mapping[str, Any]) -> Array:
    """The RGB colour that is subtracted from images, float64[3]: the mean of the average image."""
    meta = _fields(content["meta"]) if "meta" in content else content
    normalisation = _fields(meta.get("normalization"))
    average = np.asarray(normalisation.get("averageImage", ()), np.float64)
    if average.size == 3:
        return average.reshape(3)
    if average.ndim == 3 and average.shape[2] == 3:
        return np.asarray(average.mean(axis=(0, 1)))
    raise InputError(
        f"{path}: expected normalization.averageImage of 3 colours, found {list(average.shape) or 'none'}"
    )


def _folded(filters: Array, biases: Array, colour: Array) -> tuple[Array, Array]:
    """conv1 for (x - COLOUR_MEAN) / COLOUR_STD from conv1 for x - colour; filters [O,3,h,w]."""
    shift = np.asarray(COLOUR_MEAN) - colour
    wide = filters.astype(np.float64)
    moved = biases + np.einsum("ochw,c->o", wide, shift)
    scaled = wide * np.asarray(COLOUR_STD)[:, None, None]
    return scaled.astype(np.float32), moved.astype(np.float32)
