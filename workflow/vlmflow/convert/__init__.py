"""Checkpoints of other layouts: official InternVL and LLaVA, InternLM2, XTuner."""
