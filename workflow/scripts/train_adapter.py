"""Fine-tune with QLoRA, LoRA or all language model weights."""

from vlmflow.cli import run
from vlmflow.training.finetune import train_adapter

run(train_adapter)
