"""What the commands do: participant and group level, files, dry run, SLURM."""
