"""The workflow through a real Slurm."""
