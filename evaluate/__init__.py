"""Stage three: 25 frames x 10 crops, scores by video, fusion, metrics and the report."""

import pipeline  # noqa: F401  first of all, since it makes Ctrl-C end quietly during the other imports
