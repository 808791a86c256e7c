"""The paper's runs, tables and figures as data, from published.toml."""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path
from typing import Any

EXPERIMENTS = Path(__file__).parent / "published.toml"


@functools.cache
def experiments() -> dict[str, Any]:
    """The paper's `runs` and `tables`, and under `report` its results by dataset; not to be changed."""
    return tomllib.loads(EXPERIMENTS.read_text(encoding="utf-8"))


def published_rows(dataset: str, split: int | None) -> dict[str, str]:
    """The paper's accuracy in % for the rows of a results table, as text; no entry where it gives none.

    Args:
        dataset: "ucf101" or "hmdb51"; others have no published figures.
        split: number of the split, or None for the mean over splits.
    """
    of_dataset = experiments()["report"].get(dataset, {})
    return {
        name: f"{value:.1f}"
        for name, value in of_dataset.get("mean" if split is None else f"split{split}", {}).items()
    }
