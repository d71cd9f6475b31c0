"""Answers of a checkpoint: asked, scored, and compared before and after training."""
