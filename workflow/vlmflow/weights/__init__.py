"""The tensors of checkpoints, read, rearranged and written one at a time, so that any size fits any machine."""
