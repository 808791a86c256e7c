"""Weights of other projects: each layout is recognised by its names and gives the network that it was made from."""

from __future__ import annotations

import functools
import hashlib
import http.server
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner, Result
from scipy.io import savemat
from torch import Tensor, nn

from pipeline.errors import InputError
from train import pretrained
from train.__main__ import main
from train.initialise import initialise
from train.models import MODELS, build
from train.volume_spec import COLOUR_MEAN, COLOUR_STD
from train.weights import read_weights

CLASSES = ("a", "b", "c")


def narrow(channels: int = 3, classes: int = 3, model: str = "resnet18") -> nn.Module:
    return build(model, channels, classes, width=0.125)


def saved(path: Path, values: object) -> Path:
    torch.save(values, path)
    return path


# --- layouts of the field -------------------------------------------------------------------------------------------


def as_mmaction2(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's names of a ResNet as mmaction2 writes them (its ConvModule holds `conv` and `bn`)."""
    renamed = {}
    for name, tensor in weights.items():
        if name.startswith("fc."):
            renamed["cls_head.fc_cls." + name[3:]] = tensor
            continue
        name = name.replace("downsample.0.", "downsample.conv.").replace("downsample.1.", "downsample.bn.")
        name = re.sub(r"conv(\d)\.", r"conv\1.conv.", name)
        name = re.sub(r"(?<!downsample\.)\bbn(\d)\.", r"conv\1.bn.", name)
        renamed["backbone." + name] = tensor
    return renamed


def as_tsn_pytorch(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As tsn-pytorch writes them: DataParallel over a network whose last layer is `new_fc`."""
    return {
        "module." + ("new_fc." + name[3:] if name.startswith("fc.") else "base_model." + name): tensor
        for name, tensor in weights.items()
    }


@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
@pytest.mark.parametrize("channels", [3, 10])
@pytest.mark.parametrize(
    ("layout", "write"),
    [
        ("mmaction2", lambda w: {"meta": {"epoch": 80}, "state_dict": as_mmaction2(w)}),
        ("tsn-pytorch", lambda w: {"epoch": 80, "arch": "resnet50", "state_dict": as_tsn_pytorch(w)}),
        ("torchvision", dict),
    ],
)
def test_a_layout_gives_every_layer_of_its_network(
    tmp_path: Path, layout: str, write: Any, channels: int, model: str
) -> None:
    source, network = narrow(channels, model=model), narrow(channels, model=model)
    path = saved(tmp_path / "w.pth", write(source.state_dict()))
    assert read_weights(path).layout == layout
    done = initialise(network, path, CLASSES)
    assert done == ("every layer loaded" if layout == "torchvision" else f"{layout}'s names")
    for name, tensor in source.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name


def test_mmaction2_names_are_those_that_it_publishes() -> None:
    """Names of tsn_imagenet-pretrained-r50: written down here, not derived."""
    weights = as_mmaction2(build("resnet50", 3, 400, width=0.125).state_dict())
    for name in (
        "backbone.conv1.conv.weight",
        "backbone.conv1.bn.running_mean",
        "backbone.layer1.0.conv3.bn.weight",
        "backbone.layer2.0.downsample.conv.weight",
        "backbone.layer2.0.downsample.bn.num_batches_tracked",
        "cls_head.fc_cls.weight",
    ):
        assert name in weights


def test_a_message_about_names_has_the_first_ten_of_each_kind(tmp_path: Path) -> None:
    weights = {f"layer{number:02}.weight": torch.zeros(2) for number in range(15)}
    with pytest.raises(InputError) as caught:
        initialise(narrow(), saved(tmp_path / "w.pth", weights), CLASSES)
    lines = str(caught.value).splitlines()
    assert sum(line.startswith("  missing ") for line in lines) == 10
    assert [line for line in lines if line.startswith("  unexpected")] == [
        f"  unexpected layer{number:02}.weight [2]" for number in range(10)
    ]
    assert "  and 5 more" in lines


# --- convolutions alone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "fresh"), [("vgg16_gap", "fc"), ("cnn_m_2048", "full8"), ("cnn_m_2048", "full6, full7")]
)
def test_convolutions_alone_start_the_rest_afresh_and_say_so(tmp_path: Path, model: str, fresh: str) -> None:
    source, network = build(model, 3, 3, crop=64), build(model, 3, 3, crop=64)
    own = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    halves = {
        name: tensor.half()
        for name, tensor in source.state_dict().items()
        if name.startswith(("features", "conv"))
    }
    done = initialise(network, saved(tmp_path / "w.pth", halves), CLASSES)
    assert f"{fresh}: new" in done
    for name, tensor in network.state_dict().items():
        expected = halves[name].float() if name in halves else own[name]
        assert tensor.dtype == torch.float32 or name.endswith("num_batches_tracked")
        assert torch.equal(tensor, expected), name


def test_a_network_without_hidden_layers_leaves_those_of_a_file_out(tmp_path: Path) -> None:
    source, network = build("vgg16_gap", 3, 3), build("vgg16_gap", 3, 3)
    weights = {name: tensor for name, tensor in source.state_dict().items() if name.startswith("features")}
    weights |= {f"classifier.{place}.weight": torch.zeros(2, 2) for place in (0, 3, 6)}
    done = initialise(network, saved(tmp_path / "w.pth", weights), CLASSES)
    assert "classifier.0.weight, classifier.3.weight and 1 more: not in this network, left out" in done
    assert torch.equal(network.first_layer.weight, source.first_layer.weight)


def test_the_pooled_network_is_a_linear_layer_on_the_mean_of_the_features() -> None:
    network = build("vgg16_gap", 3, 4).eval()
    inputs = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        features = network.features(inputs)  # type: ignore[operator]
        expected = features.flatten(2).mean(2) @ network.last_layer.weight.T + network.last_layer.bias
        torch.testing.assert_close(network(inputs), expected)


# --- MatConvNet -----------------------------------------------------------------------------------------------------

COLOUR = np.array([123.0, 117.5, 104.25])
SHAPES = {
    "conv1": (7, 7, 3, 96), "conv2": (5, 5, 96, 256), "conv3": (3, 3, 256, 512), "conv4": (3, 3, 512, 512),
    "conv5": (3, 3, 512, 512), "fc6": (2, 2, 512, 4096), "fc7": (1, 1, 4096, 2048), "fc8": (1, 1, 2048, 5),
}  # fmt: skip
"""Filters [h,w,in,out] of the file; fc6 sees 2x2 of a crop of 96 pixels, so that the tests are quick."""


def matconvnet(path: Path, new: bool = True, **changes: tuple[str, Any]) -> tuple[Path, dict[str, Any]]:
    """A file in MatConvNet's layout with random weights; `changes` sets a field of a layer."""
    rng = np.random.default_rng(3)
    weights = {}
    layers: list[dict[str, Any]] = []
    for name, shape in SHAPES.items():
        filters = rng.normal(0, (2 / np.prod(shape[:3])) ** 0.5, shape).astype(np.float32)
        biases = rng.normal(0, 0.1, (1, shape[3])).astype(np.float32)
        weights[name] = (filters, biases.ravel())
        layer = {"type": "conv", "name": name, "stride": 2.0 if name in ("conv1", "conv2") else 1.0}
        layer["pad"] = 0.0 if name == "conv1" or name.startswith("fc") else np.ones((1, 4))
        if new:
            cell = np.empty((1, 2), object)
            cell[0, 0], cell[0, 1] = filters, biases
            layer["weights"] = cell
        else:
            layer["filters"], layer["biases"] = filters, biases
        layers += [layer, {"type": "relu", "name": f"relu{name[-1]}"}]
        if name in ("conv1", "conv2"):
            layers.append(
                {"type": "normalize", "name": f"norm{name[-1]}", "param": np.array([[5, 2, 1e-4, 0.75]])}
            )
        if name in ("conv1", "conv2", "conv5"):
            pool = {
                "type": "pool",
                "name": f"pool{name[-1]}",
                "method": "max",
                "pool": np.array([[3.0, 3.0]]),
            }
            layers.append({**pool, "stride": np.array([[2.0, 2.0]]), "pad": np.array([[0.0, 1.0, 0.0, 1.0]])})
    layers[-1] = {"type": "softmax", "name": "prob"}
    for layer in layers:
        if layer["name"] in changes:
            layer[changes[layer["name"]][0]] = changes[layer["name"]][1]
    cells = np.empty((1, len(layers)), object)
    for place, layer in enumerate(layers):
        cells[0, place] = layer
    average = COLOUR.reshape(1, 1, 3) if new else np.broadcast_to(COLOUR, (8, 8, 3)) + np.zeros((8, 8, 1))
    normalisation = {"averageImage": average.astype(np.float32), "imageSize": np.array([[224.0, 224.0, 3.0]])}
    content = {"meta": {"normalization": normalisation}} if new else {"normalization": normalisation}
    savemat(path, {"layers": cells, **content})
    return path, weights


def reference(weights: dict[str, Any], images: Tensor) -> Tensor:
    """MatConvNet's own arithmetic on RGB images float32[N,3,H,W] in 0..255: the file's network, step by step."""

    def convolved(x: Tensor, name: str, stride: int, pad: int) -> Tensor:
        filters, biases = weights[name]
        return F.conv2d(
            x, torch.from_numpy(filters).permute(3, 2, 0, 1), torch.from_numpy(biases), stride, pad
        )

    def normalised(x: Tensor) -> Tensor:
        squares = F.pad(x.square(), (0, 0, 0, 0, 2, 2))
        total = sum(squares[:, shift : shift + x.shape[1]] for shift in range(5))
        return x / (2 + 1e-4 * total) ** 0.75

    def pooled(x: Tensor) -> Tensor:
        return F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-torch.inf), 3, 2)

    x = images - torch.from_numpy(COLOUR).float()[:, None, None]
    x = pooled(normalised(convolved(x, "conv1", 2, 0).relu()))
    x = pooled(normalised(convolved(x, "conv2", 2, 1).relu()))
    for name in ("conv3", "conv4", "conv5"):
        x = convolved(x, name, 1, 1).relu()
    x = pooled(x)
    for name in ("fc6", "fc7"):
        x = convolved(x, name, 1, 0).relu()
    return convolved(x, "fc8", 1, 0).flatten(1)


@pytest.mark.parametrize("new", [True, False])
def test_the_papers_network_computes_what_matconvnets_does(tmp_path: Path, new: bool) -> None:
    path, weights = matconvnet(tmp_path / "vgg-m.mat", new)
    network = build("cnn_m_2048", 3, 5, crop=96).eval()
    done = initialise(network, path, [*CLASSES, "d", "e"])
    assert "MatConvNet's names" in done
    assert "new" not in done
    images = torch.rand(2, 3, 96, 96) * 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (COLOUR_MEAN, COLOUR_STD))
    with torch.inference_mode():
        expected = reference(weights, images)
        found = network((images - mean) / std)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def converted(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["convert", *map(str, arguments)])


def test_convert_says_what_it_took_and_writes_what_init_reads(tmp_path: Path) -> None:
    path, _ = matconvnet(tmp_path / "vgg-m.mat")
    result = converted(path)
    assert result.exit_code == 0, result.output
    assert "MatConvNet's names, cnn_m_2048: 16 tensors, 3 input channels, 5 outputs" in result.output
    assert "conv2 [5, 5, 96, 256] -> conv2 [256, 96, 5, 5]" in result.output
    assert "average colour (123.000, 117.500, 104.250) RGB: folded into conv1" in result.output
    first, second = (build("cnn_m_2048", 3, 5, crop=96).eval() for _ in range(2))
    initialise(first, path, [*CLASSES, "d", "e"])
    done = initialise(second, tmp_path / "vgg-m.pth", [*CLASSES, "d", "e"])
    assert done == "every layer loaded"
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])


def test_convert_names_the_network_of_other_layouts(tmp_path: Path) -> None:
    path = saved(tmp_path / "tsn.pth", {"state_dict": as_mmaction2(build("resnet18", 10, 51).state_dict())})
    mine = tmp_path / "mine.pth"
    result = converted(path, "--output", mine)
    assert result.exit_code == 0, result.output
    assert "mmaction2's names, resnet18: 122 tensors, 10 input channels, 51 outputs" in result.output
    assert initialise(build("resnet18", 10, 51), mine, ["?"] * 51) == "every layer loaded"
    assert "already exists" in converted(path, "--output", mine).output
    assert converted(path).exit_code == 0, (
        "its own name, which ends with .pth, is not the one that is written"
    )
    assert (tmp_path / "tsn-converted.pth").is_file()
    assert "would replace what is converted" in converted(path, "--output", path, "--overwrite").output
    refused = converted(
        saved(tmp_path / "x.pth", {"conv1.weight": torch.zeros(1)}), "--output", tmp_path / "y"
    )
    assert refused.exit_code == 1
    assert "found names such as conv1.weight" in refused.output


def test_options_of_training_do_not_go_with_convert(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--split=2", "convert", str(tmp_path / "x.pth")])
    assert result.exit_code == 2
    assert "--split is for training, not for 'convert'" in result.output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv2": ("pad", 2.0)}, "conv2: pad [2.0], expected 1"),
        ({"conv1": ("stride", 4.0)}, "conv1: stride [4.0], expected 2"),
        ({"norm1": ("param", np.array([[5, 1, 1e-4, 0.75]]))}, "norm1: param [5.0, 1.0, 0.0001, 0.75]"),
        ({"pool5": ("stride", np.array([[3.0, 3.0]]))}, "pool5: max pooling of {3.0}, stride {3.0}"),
        ({"fc8": ("name", "prediction")}, "no layer fc8"),
    ],
)
def test_another_network_of_matconvnet_is_refused(tmp_path: Path, changes: Any, message: str) -> None:
    path, _ = matconvnet(tmp_path / "other.mat", **changes)
    with pytest.raises(InputError) as caught:
        read_weights(path)
    assert message in str(caught.value)


def test_a_file_that_is_not_matlabs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.mat").write_bytes(b"no")
    with pytest.raises(InputError, match="expected a MATLAB file"):
        read_weights(tmp_path / "x.mat")
    savemat(tmp_path / "y.mat", {"a": 1})
    with pytest.raises(InputError, match="expected MatConvNet's `layers`"):
        read_weights(tmp_path / "y.mat")


# --- published files ------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server of this machine in torchvision's place, with an empty torch cache; the folder that it serves."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        monkeypatch.setattr(pretrained, "ADDRESS", f"http://127.0.0.1:{served.server_port}")
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
        yield folder
        served.shutdown()


def publish(folder: Path, monkeypatch: pytest.MonkeyPatch, digits: str = "") -> tuple[str, nn.Module]:
    """A narrow ResNet-18 in place of torchvision's, named after its hash (or after other digits)."""
    source = narrow(3, 1000)
    torch.save(source.state_dict(), folder / "new")
    digits = digits or hashlib.sha256((folder / "new").read_bytes()).hexdigest()[:8]
    name = f"resnet18-{digits}.pth"
    (folder / "new").rename(folder / name)
    monkeypatch.setitem(pretrained.FILES, "resnet18", name)
    return name, source


def test_published_weights_are_downloaded_once(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, source = publish(server, monkeypatch)
    network = narrow()
    assert "fc: new, for 3 classes" in initialise(network, pretrained.fetch("resnet18"), CLASSES)
    assert torch.equal(network.first_layer.weight, source.first_layer.weight)
    (server / name).unlink()
    assert pretrained.fetch("resnet18").name == name, "from the cache"


def test_a_published_file_with_another_hash_is_refused(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, monkeypatch, digits="00000000")
    with pytest.raises(InputError, match="invalid hash"):
        pretrained.fetch("resnet18")


def test_a_damaged_file_in_the_cache_is_refused(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, monkeypatch)
    cached = pretrained.fetch("resnet18")
    cached.write_bytes(cached.read_bytes()[:-1000])
    with pytest.raises(InputError, match="remove the file"):
        pretrained.fetch("resnet18")


def test_without_a_network_the_message_has_the_files_name_and_place(
    server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "ADDRESS", "http://127.0.0.1:9")
    with pytest.raises(InputError) as caught:
        pretrained.fetch("resnet50")
    message = str(caught.value)
    assert "download resnet50-0676ba61.pth elsewhere" in message
    assert str(tmp_path / "cache" / "checkpoints" / "resnet50-0676ba61.pth") in message


def test_a_network_without_published_weights_names_those_that_have_them() -> None:
    with pytest.raises(
        InputError, match=r"no weights of cnn_m_2048, only of vgg16, .*imagenet-vgg-m-2048.mat"
    ):
        pretrained.fetch("cnn_m_2048")
    assert set(pretrained.FILES) == set(MODELS) - {"cnn_m_2048"}
