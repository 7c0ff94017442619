"""The launcher of a target: the only place that matches on its name."""

from __future__ import annotations

from velocity.errors import UserError
from velocity.launch.launcher import Launcher


def build_launcher(kind: str) -> Launcher:
    """What submits jobs to the target; UserError where it is none that jobs are submitted to."""
    if kind == "local":
        from velocity.launch.background import LocalLauncher

        return LocalLauncher()
    if kind == "ssh":
        from velocity.launch.ssh import SshLauncher

        return SshLauncher()
    if kind == "slurm":
        from velocity.launch.slurm import SlurmLauncher

        return SlurmLauncher()
    if kind == "sagemaker":
        from velocity.launch.sagemaker import SageMakerLauncher

        return SageMakerLauncher()
    if kind == "kubernetes":
        from velocity.launch.kubernetes import KubernetesLauncher

        return KubernetesLauncher()
    raise UserError(f"unknown target {kind}", "--on", "one of local, ssh, slurm, sagemaker, kubernetes")
