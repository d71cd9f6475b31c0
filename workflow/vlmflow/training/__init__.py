"""The training engine: one for projector pretraining and fine-tuning, on the Hugging Face Trainer."""
