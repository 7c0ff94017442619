"""Prompts to completions: engines, batches that roll, and a ledger that holds every row exactly once."""
