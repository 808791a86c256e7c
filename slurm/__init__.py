"""Every stage as a SLURM array job: the submitter that chains them, and their state."""

import pipeline  # noqa: F401  first of all, since it makes Ctrl-C end quietly during the other imports
