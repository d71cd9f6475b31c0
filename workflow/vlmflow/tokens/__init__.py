"""The token budget: how long every record of a training job is, exactly, before a GPU is asked for."""
