"""The loop, and all that a run leaves behind."""
