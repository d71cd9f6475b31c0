"""vlmflow: pictures and question/answer pairs to a fine-tuned, merged, converted and measured VLM."""

__version__ = "0.1.0"
