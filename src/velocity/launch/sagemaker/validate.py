"""A CreateTrainingJob request is checked before it is sent: field by field, and what they allow each other. Pure.

The rules of a field are those of botocore's service model, of which botocore itself holds a request to unknown names,
types and what is missing alone: not to enums, patterns, lengths and ranges.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from velocity.errors import Problem, UserError
from velocity.launch.sagemaker.instances import has_nvme
from velocity.launch.sagemaker.names import BLANK

OPERATION = "CreateTrainingJob"
LONGEST_SECONDS = 28 * 86_400
KINDS: Mapping[str, type | tuple[type, ...]] = {
    "string": str, "integer": int, "long": int, "boolean": bool, "list": (list, tuple), "map": dict, "structure": dict,
    "float": (int, float), "double": (int, float),
}  # fmt: skip
# The job's key behind a part of the request; the longest that fits counts.
KEYS = {
    "TrainingJobName": "output",
    "AlgorithmSpecification.TrainingImage": "launch.image",
    "AlgorithmSpecification.ContainerArguments": "job files",
    "AlgorithmSpecification.MetricDefinitions": "data.eval",
    "RoleArn": "launch.role",
    "InputDataConfig": "data",
    "OutputDataConfig.S3OutputPath": "launch.bucket",
    "OutputDataConfig.KmsKeyId": "launch.kms_key",
    "ResourceConfig.InstanceType": "launch.instance",
    "ResourceConfig.InstanceCount": "launch.nodes",
    "ResourceConfig.VolumeSizeInGB": "launch.volume_gib",
    "ResourceConfig.VolumeKmsKeyId": "launch.kms_key",
    "ResourceConfig.KeepAlivePeriodInSeconds": "launch.warm_pool_minutes",
    "StoppingCondition.MaxRuntimeInSeconds": "launch.max_hours",
    "StoppingCondition.MaxWaitTimeInSeconds": "launch.max_wait_hours",
    "VpcConfig.Subnets": "launch.subnets",
    "VpcConfig.SecurityGroupIds": "launch.security_groups",
    "Environment": "launch.environment",
    "EnableNetworkIsolation": "launch.isolated",
    "EnableManagedSpotTraining": "launch.spot",
    "CheckpointConfig": "launch.bucket",
    "Tags": "launch.tags",
}


def check_request(request: Mapping[str, Any]) -> None:
    """Nothing, or one UserError with everything that SageMaker would refuse."""
    problems = [*_wrong(_shape(), request, ""), *_clashes(request)]
    if problems:
        raise UserError([Problem(what, _key(path), fix) for path, what, fix in problems])


def instance_types() -> list[str]:
    """The types of machine that the service model knows."""
    found: list[str] = _shape().members["ResourceConfig"].members["InstanceType"].enum
    return found


Wrong = tuple[str, str, str]  # path in the request, what, fix


@lru_cache(maxsize=1)
def _shape() -> Any:
    import botocore.session

    return botocore.session.get_session().get_service_model("sagemaker").operation_model(OPERATION).input_shape


def _key(path: str) -> str:
    known = [part for part in KEYS if path == part or path.startswith((f"{part}.", f"{part}["))]
    return KEYS[max(known, key=len)] if known else f"the request's {path}"


def _wrong(shape: Any, value: Any, path: str) -> Iterator[Wrong]:
    """All that is wrong with a value and what is below it."""
    kind = KINDS.get(shape.type_name)
    if kind is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
        yield path, f"{path} is no {shape.type_name} (it is {value!r})", ""
    elif shape.type_name == "structure":
        yield from _wrong_members(shape, value, path)
    elif shape.type_name == "list":
        yield from _wrong_size(shape, len(value), path, "entries")
        for number, item in enumerate(value):
            yield from _wrong(shape.member, item, f"{path}[{number}]")
    elif shape.type_name == "map":
        yield from _wrong_size(shape, len(value), path, "entries")
        for name, item in value.items():
            yield from _wrong(shape.key, name, f"{path}.{name}")
            yield from _wrong(shape.value, item, f"{path}.{name}")
    elif shape.type_name == "string":
        yield from _wrong_text(shape, value, path)
    elif shape.type_name in ("integer", "long"):
        yield from _wrong_size(shape, value, path, "")


def _wrong_members(shape: Any, value: Mapping[str, Any], path: str) -> Iterator[Wrong]:
    for name in shape.required_members:
        if name not in value:
            yield _below(path, name), f"{_below(path, name)} is missing", ""
    for name, item in value.items():
        if name not in shape.members:
            near = difflib.get_close_matches(name, shape.members, n=1)
            fix = f"did you mean {near[0]}?" if near else ""
            yield _below(path, name), f"{_below(path, name)} is nothing that SageMaker knows", fix
        else:
            yield from _wrong(shape.members[name], item, _below(path, name))


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _wrong_size(shape: Any, size: int, path: str, of: str) -> Iterator[Wrong]:
    least, most = shape.metadata.get("min"), shape.metadata.get("max")
    said = f"{path} has {size} {of}" if of else f"{path} is {size}"
    if least is not None and size < least:
        yield path, f"{said}, fewer than {least}" if of else f"{said}, less than {least}", ""
    if most is not None and size > most:
        yield path, f"{said}, more than {most}", ""


def _wrong_text(shape: Any, value: str, path: str) -> Iterator[Wrong]:
    shown = value if len(value) <= 80 else f"{value[:77]}…"
    if blank := BLANK.search(value):
        yield path, f"{path} lacks {blank[0]}", ""
        return
    if shape.enum and value not in shape.enum:
        near = difflib.get_close_matches(value, shape.enum, n=3)
        fix = f"one of {', '.join(near or sorted(shape.enum)[:8])}"
        yield path, f"{shown} is nothing that SageMaker has", fix
        return
    yield from _wrong_size(shape, len(value), path, "characters")
    pattern = shape.metadata.get("pattern", "")
    # Java's classes of characters are none of Python's
    if pattern and "\\p{" not in pattern and not re.fullmatch(pattern, value):
        yield path, f"{shown!r} is not of the form {pattern}", ""


def _clashes(request: Mapping[str, Any]) -> Iterator[Wrong]:
    """What fields do not allow each other. Fields that are missing or mistyped were told of before."""
    for rule in (_time, _machines, _channels, _isolation, _image, _names):
        try:
            yield from rule(request)
        except (KeyError, TypeError, AttributeError):
            continue


def _time(request: Mapping[str, Any]) -> Iterator[Wrong]:
    spot, stopping = request.get("EnableManagedSpotTraining", False), request["StoppingCondition"]
    runtime, wait = stopping["MaxRuntimeInSeconds"], stopping.get("MaxWaitTimeInSeconds")
    if runtime > LONGEST_SECONDS:
        yield "StoppingCondition.MaxRuntimeInSeconds", f"a job of {runtime} s; the longest has 28 days", ""
    if wait is not None and not spot:
        yield "StoppingCondition.MaxWaitTimeInSeconds", "a time to wait is of spot capacity alone", "set launch.spot"
    if spot and (wait is None or wait < runtime):
        what = f"spot capacity needs a time to wait of at least MaxRuntimeInSeconds={runtime} (it is {wait})"
        yield "StoppingCondition.MaxWaitTimeInSeconds", what, ""


def _machines(request: Mapping[str, Any]) -> Iterator[Wrong]:
    resources = request["ResourceConfig"]
    instance = resources["InstanceType"]
    if resources["InstanceCount"] < 1:
        yield "ResourceConfig.InstanceCount", "no machine is asked for", ""
    if resources.get("KeepAlivePeriodInSeconds") and request.get("EnableManagedSpotTraining"):
        yield "ResourceConfig.KeepAlivePeriodInSeconds", "a warm pool does not go with spot capacity", "leave one out"
    if has_nvme(instance):
        for name in ("VolumeKmsKeyId", "VolumeSizeInGB"):
            if name in resources:
                yield f"ResourceConfig.{name}", f"{instance} has disks of its own, and takes no {name}", "leave it out"
    elif instance in instance_types() and "VolumeSizeInGB" not in resources:
        yield "ResourceConfig.VolumeSizeInGB", f"{instance} has no disk of its own, and needs VolumeSizeInGB", ""


def _channels(request: Mapping[str, Any]) -> Iterator[Wrong]:
    names = [channel["ChannelName"] for channel in request["InputDataConfig"]]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        yield "InputDataConfig", f"two channels are named {twice[0]}", ""
    for number, channel in enumerate(request["InputDataConfig"]):
        path, source = f"InputDataConfig[{number}]", channel["DataSource"].get("S3DataSource", {})
        if len(channel["DataSource"]) != 1:
            yield path, f"the channel {channel['ChannelName']} has {len(channel['DataSource'])} sources, not one", ""
        plain = source.get("S3DataType") == "S3Prefix" and channel.get("CompressionType", "None") == "None"
        if channel.get("InputMode") == "FastFile" and not plain:
            yield path, "FastFile shows plain files of an S3 prefix alone", ""


def _isolation(request: Mapping[str, Any]) -> Iterator[Wrong]:
    if request.get("EnableNetworkIsolation") and request["ResourceConfig"]["InstanceCount"] > 1:
        yield "EnableNetworkIsolation", "without a network, nodes cannot exchange checkpoints", "launch.nodes: 1"


def _image(request: Mapping[str, Any]) -> Iterator[Wrong]:
    algorithm = request["AlgorithmSpecification"]
    if ("TrainingImage" in algorithm) == ("AlgorithmName" in algorithm):
        yield "AlgorithmSpecification.TrainingImage", "a job runs either an image or a named algorithm", ""


def _names(request: Mapping[str, Any]) -> Iterator[Wrong]:
    keys = [tag["Key"] for tag in request.get("Tags", ())]
    for key in keys:
        if key.lower().startswith("aws:"):
            yield "Tags", f"the tag {key}: names that begin with aws: are Amazon's own", "choose another one"
        if keys.count(key) > 1:
            yield "Tags", f"the tag {key} stands twice", "leave one out"
