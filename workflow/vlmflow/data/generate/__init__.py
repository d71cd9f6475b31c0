"""Questions and answers about a folder of pictures, written by a vision-language model behind an endpoint."""

from vlmflow.data.generate.annotate import generate_annotations

__all__ = ["generate_annotations"]
