"""Starting from other weights: torchvision-style files, runs, other inputs, other classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_checkpoint import checkpoint
from torch import nn

from pipeline.errors import InputError
from train.checkpoint import save_checkpoint
from train.initialise import cross_modality, freeze, initialise
from train.models import build

CLASSES = ("a", "b", "c")


def saved(path: Path, values: object) -> Path:
    torch.save(values, path)
    return path


def narrow(channels: int = 3, classes: int = 3) -> nn.Module:
    return build("resnet18", channels, classes, width=0.125)


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}}]
)
def test_a_state_dict_is_taken_over(tmp_path: Path, wrap: object) -> None:
    source, network = narrow(), narrow()
    done = initialise(network, saved(tmp_path / "w.pt", wrap(source.state_dict())), CLASSES)  # type: ignore
    assert done == "every layer loaded"
    for name, tensor in source.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor)


def test_flow_starts_from_the_mean_of_the_colour_filters(tmp_path: Path) -> None:
    source, network = narrow(3, 1000), narrow(20)
    fresh = network.last_layer.weight.clone()
    done = initialise(network, saved(tmp_path / "w.pt", source.state_dict()), CLASSES)
    assert "repeated for 20 channels" in done
    assert "fc: new, for 3 classes" in done
    filters, colour = network.first_layer.weight, source.first_layer.weight
    assert filters.shape == (8, 20, 7, 7)
    for channel in range(20):
        torch.testing.assert_close(filters[:, channel], (colour[:, 0] + colour[:, 1] + colour[:, 2]) / 3)
    assert torch.equal(network.last_layer.weight, fresh)
    assert torch.equal(
        network.state_dict()["layer4.1.conv2.weight"], source.state_dict()["layer4.1.conv2.weight"]
    )
    assert cross_modality(torch.ones(2, 3, 5, 5), 4).shape == (2, 4, 5, 5)


def test_a_run_keeps_its_last_layer_for_the_same_classes_only(tmp_path: Path) -> None:
    run = tmp_path / "run"
    source = checkpoint()
    save_checkpoint(run / "checkpoint-00000007.pt", source)
    same, other = narrow(4, 5), narrow(4, 5)
    assert initialise(same, run, ("x", "y", "y", "z", "x")) == "every layer loaded"
    assert torch.equal(same.last_layer.weight, source.weights["fc.weight"])
    assert "new" in initialise(other, run, ("x", "y", "y", "z", "w"))
    assert not torch.equal(other.last_layer.weight, source.weights["fc.weight"])


def test_names_and_shapes_that_do_not_fit_are_told_in_full(tmp_path: Path) -> None:
    weights = narrow().state_dict()
    del weights["bn1.weight"], weights["layer1.0.conv1.weight"], weights["bn1.num_batches_tracked"]
    weights["extra.bias"] = torch.zeros(2)
    weights["layer2.0.conv1.weight"] = torch.zeros(1, 2, 3, 3)
    with pytest.raises(InputError) as caught:
        initialise(narrow(), saved(tmp_path / "w.pt", weights), CLASSES)
    message = str(caught.value)
    for part in (
        "missing bn1.weight [8]",
        "missing layer1.0.conv1.weight [8, 8, 3, 3]",
        "unexpected extra.bias [2]",
        "layer2.0.conv1.weight: expected [16, 8, 3, 3], found [1, 2, 3, 3]",
    ):
        assert part in message
    assert "num_batches_tracked" not in message
    with pytest.raises(InputError, match="expected a state dict of tensors, found str under 'x'"):
        initialise(narrow(), saved(tmp_path / "w.pt", {"x": "y"}), CLASSES)


def test_last_layer_training_leaves_the_rest_as_it_is() -> None:
    network = narrow()
    frozen = freeze(network, "last", False)
    assert {name for name, parameter in network.named_parameters() if parameter.requires_grad} == {
        "fc.weight",
        "fc.bias",
    }
    assert len(frozen) == 20


@pytest.mark.parametrize(
    ("model", "block"),
    [
        ("resnet18", ["layer4."]),
        ("cnn_m_2048", ["conv5.", "full6.", "full7."]),
        ("vgg16", ["features.24.", "features.26.", "features.28.", "classifier.0.", "classifier.3."]),
        ("vgg16_gap", ["features.24.", "features.26.", "features.28."]),
    ],
)
def test_training_the_last_block_leaves_all_below_as_it_is(model: str, block: list[str]) -> None:
    network = build(model, 3, 2, crop=64, width=0.125 if model == "resnet18" else 1.0)
    frozen = {id(layer) for layer in freeze(network, "last-block", False)}
    names = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    expected = (*block, f"{network.last}.")
    assert names == {name for name in network.state_dict() if name.startswith(expected)} & {
        name for name, _ in network.named_parameters()
    }
    assert all(any(name.startswith(part) for name in names) for part in expected)
    for name, layer in network.named_modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            assert (id(layer) in frozen) is not name.startswith(expected)


def test_partial_bn_freezes_all_but_the_first() -> None:
    network = narrow()
    frozen = freeze(network, "all", True)
    assert len(frozen) == 19
    assert network.get_submodule("bn1") not in frozen
    assert network.get_submodule("bn1").weight.requires_grad
    assert not network.get_submodule("layer1.0.bn1").weight.requires_grad
    assert network.first_layer.weight.requires_grad
    with pytest.raises(InputError, match="has no batch normalisation"):
        freeze(build("cnn_m_2048", 3, 2, crop=64), "all", True)


def test_normalisation_of_vgg16_s_pooled_features_is_learnt_even_where_only_the_last_layer_is() -> None:
    """Pre-trained files go without it; with features of any size a step of the last layer means the same."""
    network = build("vgg16_gap", 3, 2)
    assert not freeze(network, "last", partial_bn=False)
    with torch.no_grad():
        network.features[0].weight.mul_(1000)
    inputs = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    network.train()
    features = network.penultimate(inputs)
    assert not features.requires_grad
    assert float(network.norm.running_var.max()) > 1
    assert 0.1 < float(features.pow(2).mean()) < 4
