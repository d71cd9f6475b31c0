"""Pretrain: the projector alone learns, language model and vision tower are frozen."""

from vlmflow.cli import run
from vlmflow.training.pretrain import train_projector

run(train_projector)
