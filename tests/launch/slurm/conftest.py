"""Fixtures of Slurm's tests: a real one, where a test asks for it."""

from tests.slurm_fixtures import cluster, job

__all__ = ["cluster", "job"]
