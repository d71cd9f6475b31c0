"""OpenAI-compatible servers that are asked many questions, with patience: to write a data set, or to judge answers."""
