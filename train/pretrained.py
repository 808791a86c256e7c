"""Published ImageNet weights by the network's name: torchvision's files, cached where torch caches."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from pipeline.errors import InputError, reading
from pipeline.text import first_line

ADDRESS = "https://download.pytorch.org/models"
FILES = {
    "vgg16": "vgg16-397923af.pth",
    "vgg16_gap": "vgg16-397923af.pth",
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
}
"""Network -> torchvision's file (IMAGENET1K_V1); its name ends with the first digits of its SHA-256."""


def fetch(model: str) -> Path:
    """The file of a network's ImageNet weights, downloaded unless torch's cache has it; its hash is checked.

    Raises:
        InputError: nothing is published for this network, no connection, or a damaged file.
    """
    if model not in FILES:
        raise InputError(
            f"--init imagenet: torchvision publishes no weights of {model}, only of {', '.join(FILES)}: choose one of "
            "them with --model, or give a file (for cnn_m_2048 MatConvNet's imagenet-vgg-m-2048.mat)"
        )
    name = FILES[model]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.exists():
        try:
            torch.hub.load_state_dict_from_url(
                f"{ADDRESS}/{name}", map_location="cpu", check_hash=True, weights_only=True
            )
        except (OSError, RuntimeError) as error:  # URLError and HTTPError are OSErrors
            raise InputError(
                f"{ADDRESS}/{name}: could not be downloaded ({first_line(error)}); without a network, download "
                f"{name} elsewhere and put it there: {path}"
            ) from error
    check_hash(path)
    return path


def check_hash(path: Path) -> None:
    """Compare a file with the digits of its SHA-256 in its own name, as torch.hub does after a download.

    Raises:
        InputError: it has another hash.
    """
    expected = path.stem.rpartition("-")[2]
    with reading(path), path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(expected):
        raise InputError(
            f"{path}: damaged: expected a SHA-256 that begins with {expected}, found {found[:16]}; remove the "
            "file, and it is downloaded again"
        )
