"""One workflow per results folder and one run at a time; disk space: what is in use, what can go, what is shared."""
