"""Fixtures that every test may use."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from real_data import REAL_DATA

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell script ignores Ctrl-C for what it starts in the background, and the commands under test would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real clips, ground-truth flow and official splits; skips with the reason where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real test data at {REAL_DATA}: set TWO_STREAM_TEST_DATA to the folder that holds it")
    return REAL_DATA
