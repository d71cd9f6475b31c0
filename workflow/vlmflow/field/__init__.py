"""Tasks and predictions of the field's public suites, lmms-eval and VLMEvalKit, as ours and back."""
