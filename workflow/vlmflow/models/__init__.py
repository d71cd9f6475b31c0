"""Base models: reading checkpoints, assembling complete model directories, one prompt template."""
