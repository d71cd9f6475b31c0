"""Starting a stage's processes: on free GPUs, on one node or several, and again when Slurm's time limit is near.

Nothing here changes a result, and nothing that computes one imports it.
"""
