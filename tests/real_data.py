"""Where the real clips, lists and damaged files lie that some tests need."""

from __future__ import annotations

import os
from pathlib import Path

REAL_DATA = Path(
    os.environ.get("TWO_STREAM_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data"
)
FAULTS = REAL_DATA / "faults"
