"""Stage three: 25 frames x 10 crops, scores by video, fusion, metrics and the report."""

import sys

import pipeline  # noqa: F401  first of all, since it makes Ctrl-C end quietly during the other imports

if sys.argv[:1] == ["-m"]:  # Python is about to import one of our commands
    from pipeline import shadowed

    shadowed.refuse("extract_flow", "train")
