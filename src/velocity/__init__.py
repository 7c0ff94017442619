"""Velocity turns a stock language model into a domain expert, on DeepSpeed."""

__version__ = "0.1.0"
