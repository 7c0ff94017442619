"""`velocity plan`: which machines it is for, where the model's config.json is, and the plan of each job."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from velocity.config.inference import InferenceJob
from velocity.config.job import LoadedJob, placed
from velocity.config.resolved import is_resolved
from velocity.config.sagemaker import SageMakerConfig
from velocity.config.sections import ModelConfig
from velocity.config.target import LaunchConfig
from velocity.errors import UserError
from velocity.planner import generation, table
from velocity.planner.hardware import Hardware
from velocity.planner.machines import Cluster, parse_gpus, parse_instance
from velocity.planner.plan import plan_job


def cluster_of(
    here: Hardware, launch: LaunchConfig, gpus: str | None = None, instance: str | None = None, nodes: int | None = None
) -> Cluster:
    """The machines that are asked about, or else those that the job is to be launched on: this one if it names none."""
    if gpus and instance:
        raise UserError("--gpus and --instance both name the machines", "command line", "leave one of them out")
    nodes = nodes or launch.node_count
    if isinstance(launch, SageMakerConfig) and not gpus:
        instance = instance or launch.instance
    if gpus:
        return parse_gpus(gpus, nodes)
    if instance:
        return parse_instance(instance, nodes)
    return Cluster(here, nodes)


def config_folder(model: ModelConfig) -> Path:
    """The folder with the model's config.json, weights or not; UserError where there is none."""
    path = Path(model.path).expanduser()
    if not path.is_dir():
        from velocity.models.locate import locate  # a hub id: its configuration is fetched

        return locate(model, weights=False)
    inside = [path / "merged", path / "model"] if is_resolved(path / "job.yaml") else [path]
    found = next((folder for folder in inside if (folder / "config.json").is_file()), None)
    if found is None:
        raise UserError("no config.json to plan by", str(path), "give the folder of a model, or of a finished run")
    return found


def answer(loaded: LoadedJob[Any], cluster: Cluster, price: float | None, *, as_json: bool) -> dict[str, Any] | None:
    """The plan of a job: returned where JSON is asked for, else printed."""
    with placed(loaded.origins):
        folder = config_folder(loaded.job.model)
        asked = _on(loaded, cluster)
        if isinstance(loaded.job, InferenceJob):
            described = generation.describe(generation.plans(asked, cluster, folder), cluster)
            if not as_json:
                generation.print_plans(described)
            return described if as_json else None
        plan = plan_job(asked, cluster, folder)
    if as_json:
        return table.describe(plan, price)
    table.print_plan(plan, price)
    return None


def _on(loaded: LoadedJob[Any], cluster: Cluster) -> LoadedJob[Any]:
    """The job with a process for each GPU that is asked about, whatever it says of this machine."""
    if cluster.name == "this machine":
        return loaded
    launch = loaded.job.launch.model_copy(update={"processes": "auto"})
    return replace(loaded, job=loaded.job.model_copy(update={"launch": launch}))
