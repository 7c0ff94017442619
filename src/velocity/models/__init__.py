"""Models from a folder or hub, as scorers of tokens."""
