"""Every stage as a SLURM array job: the submitter that chains them, and their state."""

import sys

import pipeline  # noqa: F401  first of all, since it makes Ctrl-C end quietly during the other imports

if sys.argv[:1] == ["-m"]:  # Python is about to import one of our commands
    from pipeline import shadowed

    shadowed.refuse("extract_flow", "train", "evaluate")
