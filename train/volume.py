"""The ConvNet's input volumes (Simonyan & Zisserman 2014, section 3.1), built on the batch, on its device.

`VolumeSpec` says what a volume holds. Bytes come from `train.batches` as uint8; here they become floats: dequantised,
followed along trajectories, their mean vector subtracted, cropped, resized and flipped. Positions, flow and channels
are counted from 0; channel 2k is x and 2k + 1 is y of the k-th field.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline import memory
from pipeline.errors import InputError
from train.volume_spec import VolumeSpec

Memory = Callable[[tuple[int, ...]], Tensor]
"""Room for pixels: a uint8 tensor of the shape given, contiguous, with arbitrary content."""


class RawFlow(NamedTuple):
    """Flow volumes as bytes, with any leading shape [...]; arrays on the host or tensors on a device.

    Attributes:
        levels: uint8[...,L,2,H,W]; smaller fields are padded at the bottom and right.
        table: float32[...,L,256], the flow of each level; [...,1,256] if all fields share one.
        scale, offset, mean: float32[...,L,2]; flow = table[level] * scale + offset, of which mean is the mean vector.
        size: int64[...,2], rows and columns without the padding.
        zoom: float32[...], pixels of the network's frame per stored pixel.
    """

    levels: Tensor
    table: Tensor
    scale: Tensor
    offset: Tensor
    mean: Tensor
    size: Tensor
    zoom: Tensor

    def to(self, device: torch.device | str) -> RawFlow:
        """The same on another device, without waiting for the copies."""
        return RawFlow(*(upload(tensor, device) for tensor in self))


class RawFrames(NamedTuple):
    """RGB frames as bytes: pixels uint8[...,H,W,3], padded as in `RawFlow`; size int64[...,2]."""

    pixels: Tensor
    size: Tensor

    def to(self, device: torch.device | str) -> RawFrames:
        """The same on another device, without waiting for the copies."""
        return RawFrames(*(upload(tensor, device) for tensor in self))


def upload(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A host tensor on a device; the copy is queued, by way of pinned memory for a GPU."""
    if torch.device(device).type == "cuda" and not tensor.is_cuda and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def position_count(spec: VolumeSpec, frames: int, flows: int, step: int = 1) -> int:
    """How many positions a video offers: its frames, or the flows at which a full volume starts.

    A video too short for a full volume has one position, whose volume repeats the last flow; one without flow has none.

    Args:
        spec: what a volume holds.
        frames, flows: their number in the shard.
        step: frames between the two of a pair, as the shard records it.
    """
    if spec.stream == "spatial":
        return max(frames, 0)
    return max(flows - (spec.length - 1) * step, min(flows, 1))


def flow_indices(
    spec: VolumeSpec, position: int, flows: int, step: int = 1
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which flows make the volume at a position: indices of forward and of backward flows, in stacking order.

    Forward flow i leads from frame i to i + step and backward flow i from frame i + step to i, so every flow of a
    volume begins where the one before ends. Position p is frame p of a forward volume, p + L/2 * step of a
    bi-directional and p + L * step of a backward one. Sequences that run out of flows repeat their last.

    Raises:
        ValueError: position outside `position_count`.
    """
    if not 0 <= position < position_count(spec, 0, flows, step):
        raise ValueError(f"position {position} of a video with {flows} flows and L = {spec.length}")
    return flow_index_table(spec, np.array(position), np.array(flows), np.array(step))


def flow_index_table(
    spec: VolumeSpec,
    positions: npt.NDArray[np.int64],
    flows: npt.NDArray[np.int64],
    steps: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """`flow_indices` of many positions: int64[...,forward flows], int64[...,backward flows].

    Args:
        spec: what a volume holds.
        positions: int64[...], each within its video's `position_count`.
        flows, steps: of each position's video; shapes that broadcast with positions'.
    """
    ahead = {"forward": spec.length, "both": spec.length // 2, "backward": 0}[spec.direction]
    back = spec.length - ahead
    short = {"forward": np.zeros_like(flows), "both": flows // 2, "backward": flows - 1 + steps}
    frame = np.where(flows <= (spec.length - 1) * steps, short[spec.direction], positions + back * steps)
    frame, steps, last = frame[..., None], np.asarray(steps)[..., None], np.asarray(flows)[..., None] - 1
    forward = np.minimum(frame + steps * np.arange(ahead), last)
    backward = np.maximum(frame - steps * np.arange(1, back + 1), 0)
    return forward, backward


def cut_side(spec: VolumeSpec, height: int, width: int) -> int:
    """Side in stored pixels of the square that the network sees as `crop` x `crop` pixels.

    Raises:
        InputError: the crop is larger than the stored frame (only possible with short_side = 0).
    """
    shorter = min(height, width)
    side = round(spec.crop * shorter / spec.short_side) if spec.short_side else spec.crop
    if side > shorter:
        raise InputError(
            f"a crop of {spec.crop} pixels does not fit in a stored frame of {width}x{height}: "
            f"set short_side to at least {spec.crop}, or a smaller crop"
        )
    return max(side, 1)


def zoom(spec: VolumeSpec, height: int, width: int) -> float:
    """Pixels of the network's frame per stored pixel, by which flow vectors grow as well."""
    return spec.short_side / min(height, width) if spec.short_side else 1.0


def dequantise(levels: Tensor, table: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """Flow in pixels: table[level] * scale + offset.

    Args:
        levels: uint8[...,2,H,W]. table: float32[...,256]; its leading shape may be one that broadcasts.
        scale, offset: float32[...,2].

    Returns:
        float32[...,2,H,W].
    """
    return _look_up(levels, _plane_values(table, scale, offset))


def _plane_values(table: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """table * scale + offset of each component of each field, float32[planes,256], so that every pixel is looked up
    and nothing more."""
    if table.device.type == "cpu":  # by NumPy, since torch wakes all of its threads for so little
        each = table.numpy()[..., None, :] * scale.numpy()[..., None] + offset.numpy()[..., None]
        return torch.from_numpy(each).view(-1, 256)
    return (table[..., None, :] * scale[..., None] + offset[..., None]).view(-1, 256)


def _look_up(levels: Tensor, values: Tensor) -> Tensor:
    """float32[...,2,H,W]: each plane's values[level], of levels uint8[...,2,H,W] and values float32[planes,256]."""
    planes = levels.reshape(len(values), -1)
    if levels.device.type == "cpu":
        # Several times as fast as a gather in torch, which has no byte indices.
        from pipeline.codec_kernels import look_up, look_up_planes

        flow = volume_memory(levels.shape, levels.device)
        source, of, out = planes.numpy(), values.numpy(), flow.view(planes.shape).numpy()
        if in_pairs(planes.shape[1]):
            look_up_planes(source, of.view(np.uint32), out.view(np.uint64))
        else:
            for plane in range(len(planes)):
                look_up(source[plane], of[plane], out[plane])
        return flow
    start = torch.arange(len(values), dtype=torch.int32, device=levels.device).mul_(256)
    index = planes.to(torch.int32).add_(start[:, None])
    return values.view(-1).index_select(0, index.view(-1)).view(levels.shape)


def in_pairs(count: int) -> bool:
    """Whether the kernels that look up and store two neighbours at a time can be used for so many pixels."""
    return count % 2 == 0 and sys.byteorder == "little"


def follow(flow: Tensor, size: Tensor) -> Tensor:
    """Trajectory stacking: field k sampled at p_k, with p_1 = (u, v) and p_k = p_{k-1} + d_{k-1}(p_{k-1}).

    Sampling is bilinear; a point outside the frame reads the nearest pixel of its border.

    Args:
        flow: float32[N,L,2,H,W] in stored pixels, means not subtracted.
        size: int64[N,2], rows and columns of each field without its padding.

    Returns:
        float32[N,L,2,H,W].
    """
    count, length, _, height, width = flow.shape
    rows = torch.arange(height, dtype=flow.dtype, device=flow.device)[:, None]
    columns = torch.arange(width, dtype=flow.dtype, device=flow.device)[None]
    x, y = columns.expand(count, height, width), rows.expand(count, height, width)
    last = (size.to(flow.device, flow.dtype) - 1)[:, :, None, None]
    zero = torch.zeros((), dtype=flow.dtype, device=flow.device)
    along = [flow[:, 0]]
    for k in range(1, length):
        x, y = x + along[-1][:, 0], y + along[-1][:, 1]
        inside = torch.stack(
            [
                torch.clamp(x, zero, last[:, 1]) * (2 / max(width - 1, 1)) - 1,
                torch.clamp(y, zero, last[:, 0]) * (2 / max(height - 1, 1)) - 1,
            ],
            dim=-1,
        )
        along.append(
            F.grid_sample(flow[:, k], inside, mode="bilinear", padding_mode="border", align_corners=True)
        )
    return torch.stack(along, dim=1)


def flow_volume(raw: RawFlow, spec: VolumeSpec) -> Tensor:
    """The temporal stream's input from bytes: float32[...,2L,H,W], in units of the network (`flow_scale`).

    Trajectories follow the flow as it is; the mean vector is subtracted afterwards (paper, section 3.1).
    """
    if raw.levels.shape[-4] != spec.length:
        raise ValueError(f"{raw.levels.shape[-4]} flow fields, but L = {spec.length}")
    if spec.stacking == "stack":
        flow = _look_up(raw.levels, stack_values(raw, spec))
    else:
        gain = (raw.zoom * spec.flow_scale)[..., None, None]
        flow = dequantise(raw.levels, raw.table, raw.scale, raw.offset)
        flow = flow.view(-1, *flow.shape[-4:])
        size = raw.size.reshape(-1, 2)
        # The two halves of a bi-directional volume both start at the frame's own pixels.
        runs = flow.chunk(2, dim=1) if spec.direction == "both" else (flow,)
        flow = torch.cat([follow(run, size) for run in runs], dim=1).view(raw.levels.shape)
        if spec.mean_subtraction:
            flow = flow - raw.mean[..., None, None]
        flow = flow * gain[..., None, None]
    return flow.flatten(-4, -3)


def stack_values(raw: RawFlow, spec: VolumeSpec) -> Tensor:
    """What each level of each plane of a stack is to the network: float32[planes,256], planes in the order of levels.

    Everything after the table is one multiplication and one addition per value.
    """
    gain = (raw.zoom * spec.flow_scale)[..., None, None]
    offset = raw.offset - raw.mean if spec.mean_subtraction else raw.offset
    return _plane_values(raw.table, raw.scale * gain, offset * gain)


def frame_volume(raw: RawFrames, spec: VolumeSpec, noise: Tensor | None = None) -> Tensor:
    """The spatial stream's input from bytes: float32[...,3,H,W], (colour + noise - mean) / std.

    Args:
        raw: frames, uint8[...,H,W,3].
        spec: its colour_mean and colour_std are used.
        noise: float32[...,3] in 0..255 units, added to every pixel of a frame (`train.sampler.lighting_noise`).
    """
    mean, std = colour_statistics(spec.colour_mean, spec.colour_std, raw.pixels.device)
    shift = -mean
    if noise is not None:
        shift = shift + noise
    channels_first = raw.pixels.movedim(-1, -3)
    colours = volume_memory(channels_first.shape, raw.pixels.device).copy_(channels_first)
    return colours.mul_((1 / std)[:, None, None]).add_((shift / std)[..., None, None])


@functools.lru_cache(maxsize=8)
def colour_statistics(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Both as float32[3] on the device, copied there once."""
    return upload(torch.tensor(mean), device), upload(torch.tensor(std), device)


def volume(raw: RawFlow | RawFrames, spec: VolumeSpec, noise: Tensor | None = None) -> Tensor:
    """`flow_volume` or `frame_volume`, by the kind of bytes: float32[...,C,H,W]."""
    return flow_volume(raw, spec) if isinstance(raw, RawFlow) else frame_volume(raw, spec, noise)


def mirror(inputs: Tensor, spec: VolumeSpec) -> Tensor:
    """Horizontally flipped volumes [...,C,H,W]: columns reversed, and x components of flow negated."""
    if inputs.device.type == "cpu":
        mirrored = volume_memory(inputs.shape, inputs.device)
        for out, one in zip(mirrored, inputs, strict=True):
            out.copy_(one.flip(-1))
    else:
        mirrored = inputs.flip(-1)
    if spec.stream == "temporal":
        mirrored[..., 0::2, :, :].neg_()
    return mirrored


def cut(volumes: Tensor, boxes: npt.NDArray[np.int64] | Tensor, crop: int) -> Tensor:
    """Square crops of volumes; regions of another size are resized (bilinear, antialiased).

    Values are not scaled: flow vectors do not grow or shrink with a jittered region (as in TSN).

    Args:
        volumes: float32[N,C,H,W].
        boxes: int[N,4] on the host: top, left, height, width in pixels of the volume.
        crop: side of the result.

    Returns:
        float32[N,C,crop,crop].

    Raises:
        ValueError: a box that leaves the volume.
    """
    boxes = np.asarray(boxes)
    height, width = volumes.shape[-2:]
    if len(boxes) != len(volumes) or boxes[:, :2].min() < 0 or boxes[:, 2:].min() < 1:
        raise ValueError(f"{len(volumes)} volumes, boxes {boxes.tolist()}")
    if (boxes[:, 0] + boxes[:, 2]).max() > height or (boxes[:, 1] + boxes[:, 3]).max() > width:
        raise ValueError(f"boxes {boxes.tolist()} leave volumes of {height}x{width}")
    if (boxes == (0, 0, height, width)).all():
        return resize(volumes, crop)
    regions: dict[tuple[int, int], list[int]] = {}
    for i, box in enumerate(boxes):
        regions.setdefault((int(box[2]), int(box[3])), []).append(i)
    parts = [
        resize(
            torch.stack(
                [volumes[i, :, y : y + h, x : x + w] for i, (y, x, h, w) in zip(of, boxes[of], strict=True)]
            ),
            crop,
        )
        for of in regions.values()
    ]
    if len(parts) == 1:
        return parts[0]
    order = np.argsort(np.concatenate(list(regions.values())))
    return torch.cat(parts)[upload(torch.from_numpy(order), volumes.device)]


def resize(volumes: Tensor, side: int) -> Tensor:
    """Volumes [N,C,h,w] at side x side pixels: bilinear, with the filter widened where they shrink."""
    if volumes.shape[-2:] == (side, side):
        return volumes
    return F.interpolate(volumes, size=(side, side), mode="bilinear", antialias=True, align_corners=False)


def mirror_where(inputs: Tensor, flip: Tensor, spec: VolumeSpec) -> Tensor:
    """Volumes [N,C,H,W], of which those with flip[N] set are flipped horizontally."""
    return torch.where(upload(flip, inputs.device)[:, None, None, None], mirror(inputs, spec), inputs)


# --- memory that bytes and volumes lie in: `pipeline.memory`, as tensors --------------------------------------------


def plain_memory(shape: tuple[int, ...]) -> Tensor:
    """Newly allocated memory."""
    return torch.empty(shape, dtype=torch.uint8)


def memory_for(device: torch.device) -> Memory:
    """Room for what is going to a device."""
    return pinned_memory if device.type == "cuda" else ReusedMemory()


def pinned_memory(shape: tuple[int, ...]) -> Tensor:
    """Pinned memory, which torch reuses once nothing refers to it and the copies from it are done."""
    return torch.empty(shape, dtype=torch.uint8, pin_memory=True)


class ReusedMemory:
    """Memory that is reused once nothing refers to it; may be called from any thread."""

    def __init__(self) -> None:
        self._memory = memory.ReusedMemory()

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """A tensor uint8[shape]; any view of it keeps its memory."""
        return torch.from_numpy(self._memory(shape))


_volumes = ReusedMemory()


def volume_memory(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Room for float32[shape] on a device; a GPU's allocator uses its memory again anyway."""
    if device.type != "cpu":
        return torch.empty(shape, device=device)
    return _volumes((4 * math.prod(shape),)).view(torch.float32).view(shape)
