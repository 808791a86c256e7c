"""Fixtures of the trainer's tests."""

from __future__ import annotations

import pytest
import torch
from tiny_dataset import make_dataset

from pipeline.paths import DatasetPaths


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> DatasetPaths:
    """The dataset `tiny` and, with the classes Left and Up only, `other`; for tests that change nothing."""
    root = tmp_path_factory.mktemp("train")
    make_dataset(root, "other", ("Left", "Up"), seed=1)
    return make_dataset(root)
