"""The whole project as one command, `two-stream`, and its version."""

import pipeline  # noqa: F401  first of all, since it makes Ctrl-C end quietly during the other imports
from pipeline.version import VERSION as __version__

__all__ = ["__version__"]
