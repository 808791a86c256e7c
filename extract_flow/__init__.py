"""Stage one: dense optical flow and frames from videos into shards."""

import pipeline  # noqa: F401  first of all, since it makes Ctrl-C end quietly during the other imports
