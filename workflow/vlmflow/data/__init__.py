"""The data stage: formats, pictures, splits, and the report of what is wrong."""
