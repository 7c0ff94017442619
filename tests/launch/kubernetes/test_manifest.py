"""What Kubernetes is told of a job: kept manifests, held against its own schemas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.launch.kubernetes.jobs import GOLDEN, IMAGE, cases, rendered, sft, submission
from velocity.errors import InterruptedRun, UserError
from velocity.launch import container
from velocity.launch.kubernetes.launcher import KubernetesLauncher
from velocity.launch.kubernetes.manifest import NO_IMAGE, manifest
from velocity.launch.launcher import Submission

VERSIONS = ("1.31", kubernetes_validate.latest_version())


def objects_of(text: str) -> dict[str, Any]:
    return {one["kind"]: one for one in yaml.safe_load_all(text)}


def pod_of(launch: dict[str, Any], **sections: Any) -> dict[str, Any]:
    made = objects_of(manifest(submission(sft(launch, **sections)), IMAGE))
    found: dict[str, Any] = made["Job"]["spec"]["template"]["spec"]
    return found


@pytest.mark.parametrize("name", cases())
def test_a_manifest_is_the_kept_one(name: str):
    kept = (GOLDEN / f"{name}.yaml").read_text("utf-8")
    assert rendered(name) == kept, "if meant: python -m tests.launch.kubernetes.jobs"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", cases())
def test_a_kept_manifest_is_what_kubernetes_takes_and_nothing_unknown(name: str, version: str):
    for one in yaml.safe_load_all((GOLDEN / f"{name}.yaml").read_text("utf-8")):
        kubernetes_validate.validate(one, version, strict=True)


def test_the_validation_sees_a_field_that_kubernetes_does_not_know():
    job = objects_of(rendered("defaults"))["Job"]
    job["spec"]["template"]["spec"]["hostnames"] = "a"
    with pytest.raises(kubernetes_validate.ValidationError, match="hostnames"):
        kubernetes_validate.validate(job, VERSIONS[-1], strict=True)


def test_a_job_file_arrives_as_it_was_whatever_its_name_and_its_text():
    text = "# a: b\n\ttab  \nGröße: '\"'\n\n  indented\n"
    sent = Submission("a-1", Path("/f"), submission(sft()).jobs, {"1-my job (ö).yaml": text})
    made = objects_of(manifest(sent, IMAGE))
    item = made["Job"]["spec"]["template"]["spec"]["volumes"][0]["configMap"]["items"][0]
    assert made["ConfigMap"]["data"] == {item["key"]: text}
    assert item["path"] == "1-my job (ö).yaml"


def test_a_variable_that_kubernetes_would_fill_in_stays_as_it_was_written():
    pod = pod_of({"environment": {"A": "$(HOME) $HOME"}})["containers"][0]
    assert {"name": "A", "value": "$$(HOME) $HOME"} in pod["env"]


def test_a_job_that_names_no_image_runs_the_one_that_was_pushed_last(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sent = submission(sft({"image": None}))
    assert NO_IMAGE in "".join(KubernetesLauncher().render(sent).values())
    container._remember("pushed", {"image": "r.example.org/velocity@sha256:1", "accelerator": "cpu", "time": 1.0})
    assert "r.example.org/velocity@sha256:1" in "".join(KubernetesLauncher().render(sent).values())


def test_wrong_input_ends_the_job_a_save_and_a_drained_machine_do_not_count():
    rules = objects_of(rendered("defaults"))["Job"]["spec"]["podFailurePolicy"]["rules"]
    by_code = [(rule["onExitCodes"]["values"], rule["action"]) for rule in rules if "onExitCodes" in rule]
    assert by_code == [([UserError.exit_status], "FailJob"), ([InterruptedRun.exit_status], "Ignore")]
    by_condition = [(rule["onPodConditions"], rule["action"]) for rule in rules if "onPodConditions" in rule]
    assert by_condition == [([{"type": "DisruptionTarget", "status": "True"}], "Ignore")]


def test_pods_have_no_right_that_they_do_not_need():
    pod = pod_of({})
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    within = pod["containers"][0]["securityContext"]
    assert within == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert pod_of({"user": 0})["securityContext"]["runAsNonRoot"] is False


def test_a_secret_of_the_environment_is_in_no_manifest(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_planted0123456789planted0123456789")
    assert "planted" not in rendered("gpus-and-claim")
    assert {"secretRef": {"name": "hub"}} in pod_of({"secrets": "hub"})["containers"][0]["envFrom"]
