"""Every stage as a SLURM array job: the submitter that chains them, and their state."""
