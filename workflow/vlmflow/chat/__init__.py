"""Trying a model by hand: in the terminal, on a page, behind a server."""
