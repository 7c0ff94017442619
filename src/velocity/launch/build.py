"""The launcher of a target: the only place that matches on its name."""

from __future__ import annotations

from velocity.errors import UserError
from velocity.launch.launcher import Launcher


def build_launcher(kind: str) -> Launcher:
    """What submits jobs to the target; UserError where it is none that jobs are submitted to."""
    if kind == "local":
        from velocity.launch.supervised.here import Here
        from velocity.launch.supervised.launcher import SupervisedLauncher

        return SupervisedLauncher(Here())
    if kind == "ssh":
        from velocity.launch.supervised.launcher import SupervisedLauncher
        from velocity.launch.supervised.ssh import Ssh

        return SupervisedLauncher(Ssh())
    if kind == "slurm":
        from velocity.launch.slurm.launcher import SlurmLauncher

        return SlurmLauncher()
    if kind == "sagemaker":
        from velocity.launch.sagemaker.launcher import SageMakerLauncher

        return SageMakerLauncher()
    if kind == "kubernetes":
        from velocity.launch.kubernetes.launcher import KubernetesLauncher

        return KubernetesLauncher()
    raise UserError(f"unknown target {kind}", "--on", "one of local, ssh, slurm, sagemaker, kubernetes")
