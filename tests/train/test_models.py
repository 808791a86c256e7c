"""Networks against published sizes and against the same thing said with plain torch functions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import InputError
from train.models import MODELS, build
from train.models.cnn_m import feature_side
from train.models.network import Network, shapes_only


def parameters(name: str, channels: int, classes: int) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build(name, channels, classes).parameters())


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("vgg16", 138_357_544),
    ],
)
def test_parameter_counts_are_torchvision_s(name: str, published: int) -> None:
    assert parameters(name, 3, 1000) == published


def test_cnn_m_2048_has_the_paper_s_parameters() -> None:
    convolutions = 7 * 7 * 20 * 96 + 5 * 5 * 96 * 256 + 9 * 256 * 512 + 2 * 9 * 512 * 512
    full = 512 * 6 * 6 * 4096 + 4096 * 2048 + 2048 * 101
    biases = 96 + 256 + 3 * 512 + 4096 + 2048 + 101
    assert parameters("cnn_m_2048", 20, 101) == convolutions + full + biases == 90_707_781


def torchvision_names(depth: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's ResNet state dict, written out from its published definition."""
    counts = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]
    bottleneck = depth >= 50
    names: dict[str, tuple[int, ...]] = {}

    def norm(name: str, width: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            names[f"{name}.{part}"] = (width,)
        names[f"{name}.num_batches_tracked"] = ()

    names["conv1.weight"] = (64, 3, 7, 7)
    norm("bn1", 64)
    width = 64
    for stage, count in enumerate(counts, 1):
        inner = 32 * 2**stage
        outer = inner * (4 if bottleneck else 1)
        for block in range(count):
            at = f"layer{stage}.{block}"
            kernels = (
                [(1, width, inner), (3, inner, inner), (1, inner, outer)]
                if bottleneck
                else [(3, width, inner), (3, inner, inner)]
            )
            for i, (kernel, before, after) in enumerate(kernels, 1):
                names[f"{at}.conv{i}.weight"] = (after, before, kernel, kernel)
                norm(f"{at}.bn{i}", after)
            if block == 0 and (stage > 1 or bottleneck):
                names[f"{at}.downsample.0.weight"] = (outer, width, 1, 1)
                norm(f"{at}.downsample.1", outer)
            width = outer
    names["fc.weight"], names["fc.bias"] = (1000, width), (1000,)
    return names


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_resnet_state_dicts_have_torchvision_s_names_and_shapes(depth: int) -> None:
    with torch.device("meta"):
        state = build(f"resnet{depth}", 3, 1000).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == torchvision_names(depth)


def test_vgg16_state_dict_has_torchvision_s_names_and_shapes() -> None:
    layers = {
        0: 64,
        2: 64,
        5: 128,
        7: 128,
        10: 256,
        12: 256,
        14: 256,
        17: 512,
        19: 512,
        21: 512,
        24: 512,
        26: 512,
        28: 512,
    }
    expected: dict[str, tuple[int, ...]] = {}
    width = 3
    for index, wider in layers.items():
        expected[f"features.{index}.weight"], expected[f"features.{index}.bias"] = (
            (wider, width, 3, 3),
            (wider,),
        )
        width = wider
    for index, (before, after) in {0: (25088, 4096), 3: (4096, 4096), 6: (4096, 1000)}.items():
        expected[f"classifier.{index}.weight"], expected[f"classifier.{index}.bias"] = (
            (after, before),
            (after,),
        )
    with torch.device("meta"):
        state = build("vgg16", 3, 1000).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected


# --- outputs and gradients, against functions ---


def plain_cnn_m(state: dict[str, Tensor], x: Tensor, second_norm: bool) -> Tensor:
    """CNN-M-2048 in functions; response normalisation from Krizhevsky's formula."""

    def norm(x: Tensor) -> Tensor:
        squares = F.pad(x * x, (0, 0, 0, 0, 2, 2))
        total = sum(squares[:, i : i + x.shape[1]] for i in range(5))
        return x / (2 + 1e-4 * total) ** 0.75

    def layer(name: str, x: Tensor, **options: int) -> Tensor:
        return F.relu(F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **options))

    x = F.max_pool2d(norm(layer("conv1", x, stride=2)), 3, 2, ceil_mode=True)
    x = layer("conv2", x, stride=2, padding=1)
    x = F.max_pool2d(norm(x) if second_norm else x, 3, 2, ceil_mode=True)
    x = layer("conv5", layer("conv4", layer("conv3", x, padding=1), padding=1), padding=1)
    x = F.max_pool2d(x, 3, 2, ceil_mode=True).flatten(1)
    for name in ("full6", "full7"):
        x = F.relu(F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"]))
    return F.linear(x, state["full8.weight"], state["full8.bias"])


def plain_resnet(state: dict[str, Tensor], x: Tensor, depth: int) -> Tensor:
    """A ResNet in functions, with batch statistics."""

    def norm(name: str, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, state[f"{name}.weight"], state[f"{name}.bias"], training=True)

    def convolution(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    x = F.max_pool2d(F.relu(norm("bn1", convolution("conv1", x, 2))), 3, 2, 1)
    kernels = 3 if depth >= 50 else 2
    strided = 2 if depth >= 50 else 1  # the 3x3 convolution
    for stage in range(1, 5):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in state:
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            shortcut = x
            if f"{at}.downsample.0.weight" in state:
                shortcut = norm(f"{at}.downsample.1", convolution(f"{at}.downsample.0", x, stride))
            for i in range(1, kernels + 1):
                x = norm(f"{at}.bn{i}", convolution(f"{at}.conv{i}", x, stride if i == strided else 1))
                x = F.relu(x if i < kernels else x + shortcut)
            block += 1
    return F.linear(x.mean(dim=(2, 3)), state["fc.weight"], state["fc.bias"])


def plain_vgg16(state: dict[str, Tensor], x: Tensor) -> Tensor:
    for index in (0, 2, -1, 5, 7, -1, 10, 12, 14, -1, 17, 19, 21, -1, 24, 26, 28, -1):
        if index < 0:
            x = F.max_pool2d(x, 2)
        else:
            x = F.relu(
                F.conv2d(x, state[f"features.{index}.weight"], state[f"features.{index}.bias"], padding=1)
            )
    x = F.adaptive_avg_pool2d(x, 7).flatten(1)
    for index in (0, 3, 6):
        x = F.linear(x, state[f"classifier.{index}.weight"], state[f"classifier.{index}.bias"])
        x = F.relu(x) if index < 6 else x
    return x


def small_vgg16(channels: int) -> Network:
    """VGG-16 with narrow full layers, which would be most of the time."""
    with torch.device("meta"):
        network = build("vgg16", channels, 5)
    for index, (before, after) in {0: (25088, 16), 3: (16, 16), 6: (16, 5)}.items():
        network.get_submodule("classifier")[index] = nn.Linear(before, after)  # type: ignore[index]
    network.get_submodule("features").to_empty(device="cpu")
    for name, parameter in network.get_submodule("features").named_parameters():
        nn.init.kaiming_normal_(parameter) if "weight" in name else nn.init.normal_(parameter, std=0.1)
    return network


@pytest.mark.parametrize(
    ("name", "channels", "crop"),
    [
        ("cnn_m_2048", 3, 64),
        ("cnn_m_2048", 4, 64),
        ("resnet18", 4, 64),
        ("resnet50", 3, 64),
        ("vgg16", 2, 32),
    ],
)
def test_outputs_and_gradients_equal_those_of_plain_functions(name: str, channels: int, crop: int) -> None:
    torch.manual_seed(0)
    network = small_vgg16(channels) if name == "vgg16" else build(name, channels, 5, crop=crop)
    network.train()
    inputs = torch.randn(2, channels, crop, crop)
    weights = {
        key: value.clone().requires_grad_()
        for key, value in network.state_dict().items()
        if value.is_floating_point()
    }
    if name == "cnn_m_2048":
        expected = plain_cnn_m(weights, inputs, second_norm=channels == 3)
    elif name == "vgg16":
        expected = plain_vgg16(weights, inputs)
    else:
        expected = plain_resnet(weights, inputs, int(name[6:]))
    logits = network(inputs)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-3)
    goal = torch.tensor([1, 3])
    F.cross_entropy(logits, goal).backward()
    F.cross_entropy(expected, goal).backward()
    for key, parameter in network.named_parameters():
        other = weights[key].grad
        assert parameter.grad is not None
        assert other is not None
        assert (parameter.grad - other).norm() <= 2e-3 * other.norm() + 1e-6, key


def test_full6_sees_six_by_six_of_224_pixels() -> None:
    assert feature_side(224) == 6
    network = build("cnn_m_2048", 4, 3, crop=96)
    assert network(torch.zeros(1, 4, 96, 96)).shape == (1, 3)


@pytest.mark.parametrize("name", MODELS)
def test_first_and_last_layers_are_where_they_are_said_to_be(name: str) -> None:
    with torch.device("meta"):
        network = build(name, 6, 7)
    assert network.first_layer.in_channels == 6
    assert network.last_layer.out_features == 7


def test_impossible_networks_are_refused() -> None:
    for arguments in (
        {"name": "resnet19"},
        {"dropout": 1.0},
        {"name": "cnn_m_2048", "crop": 20},
        {"name": "vgg16", "crop": 31},
        {"name": "vgg16_gap", "crop": 16},
        {"name": "vgg16", "width": 0.5},
        {"width": 0.0},
    ):
        with pytest.raises(InputError):
            build(**{"name": "resnet18", "channels": 3, "classes": 2, **arguments})  # type: ignore[arg-type]


def test_width_scales_every_layer() -> None:
    narrow = build("resnet18", 3, 10, width=0.25)
    assert narrow.first_layer.out_channels == 16
    assert narrow.last_layer.in_features == 128


@pytest.mark.parametrize("name", MODELS)
def test_shapes_alone_are_those_of_the_network_and_take_no_memory(name: str) -> None:
    with shapes_only():
        shapes = build(name, 3, 2, crop=64).state_dict()
    assert all(tensor.is_meta for tensor in shapes.values())
    if name in ("resnet18", "vgg16_gap"):
        whole = build(name, 3, 2, crop=64).state_dict()
        assert [(key, tensor.shape) for key, tensor in shapes.items()] == [
            (key, tensor.shape) for key, tensor in whole.items()
        ]


def test_looking_at_shapes_does_not_load_torch_s_compiler() -> None:
    code = (
        "import sys; from train.models import build; from train.models.network import shapes_only\n"
        "with shapes_only(): [build(name, 3, 2) for name in ('resnet18', 'vgg16', 'cnn_m_2048')]\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
