"""Fixtures of the fault tests: a Slurm, where a test asks for one."""

from tests.slurm_fixtures import cluster, job

__all__ = ["cluster", "job"]
