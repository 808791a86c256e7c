"""Stage two: the spatial and temporal ConvNets, trained from shards."""

import pipeline  # noqa: F401  first of all, since it makes Ctrl-C end quietly during the other imports
