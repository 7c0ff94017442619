"""How good an answer is, against one that is known."""
