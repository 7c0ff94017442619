"""Which node this is, as each target says."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from velocity.errors import UserError
from velocity.launch import place
from velocity.launch.place import Place, expanded, find_place, of_resources

TEN = tuple(f"algo-{number}" for number in range(1, 11))


def test_on_ssh_our_own_variables_say_it():
    variables = {"VELOCITY_HOSTS": "b,a,c", "VELOCITY_NODE": "1", "VELOCITY_PORT": "29500"}
    found = find_place("ssh", variables)
    assert found == Place(("b", "a", "c"), 1, 29500)
    assert (found.host, found.first) == ("a", False)
    assert find_place("ssh", {**variables, "VELOCITY_NODE": "0"}).first


def test_on_slurm_each_task_knows_its_node_and_two_jobs_on_one_host_meet_at_two_ports():
    variables = {"SLURM_STEP_NODELIST": "gpu-[08-10]", "SLURM_NODEID": "2", "SLURM_JOB_ID": "123456"}
    found = find_place("slurm", variables)
    assert found == Place(("gpu-08", "gpu-09", "gpu-10"), 2, 23456, 0)
    assert find_place("slurm", {**variables, "SLURM_JOB_ID": "123457"}).port != found.port
    assert find_place("slurm", {**variables, "SLURM_RESTART_COUNT": "3"}).attempt == 3


def test_on_kubernetes_the_names_follow_from_the_job_and_its_service():
    variables = {"VELOCITY_JOB": "sft", "VELOCITY_SERVICE": "sft-nodes", "VELOCITY_NODES": "12"}
    found = find_place("kubernetes", {**variables, "JOB_COMPLETION_INDEX": "11"})
    assert found.hosts[:2] == ("sft-0.sft-nodes", "sft-1.sft-nodes")
    assert (len(found.hosts), found.host) == (12, "sft-11.sft-nodes")


@pytest.mark.parametrize("index", [1, 9])
def test_on_sagemaker_ten_hosts_are_counted_and_not_spelt(index: int):
    text = json.dumps({"current_host": TEN[index], "hosts": sorted(TEN), "network_interface_name": "eth0"})
    assert sorted(TEN) != list(TEN)
    assert of_resources(text) == Place(TEN, index)


def test_the_order_of_hosts_is_the_same_however_sagemaker_lists_them():
    hosts = list(TEN)
    random.Random(0).shuffle(hosts)
    assert of_resources(json.dumps({"current_host": "algo-2", "hosts": hosts})) == Place(TEN, 1)


def test_on_sagemaker_a_file_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(place, "SAGEMAKER", tmp_path / "resourceconfig.json")
    with pytest.raises(UserError, match="this is no node of a job on sagemaker: .*No such file"):
        find_place("sagemaker", {})
    place.SAGEMAKER.write_text('{"current_host": "algo-1", "hosts": ["algo-1"]}')
    assert find_place("sagemaker", {}) == Place(("algo-1",), 0)


@pytest.mark.parametrize(
    ("target", "variables", "said"),
    [
        ("ssh", {}, "this is no node of a job on ssh: 'VELOCITY_HOSTS'"),
        ("ssh", {"VELOCITY_HOSTS": "a,b", "VELOCITY_NODE": "one"}, "this is no node of a job on ssh: invalid literal"),
        ("ssh", {"VELOCITY_HOSTS": "a,b", "VELOCITY_NODE": "2"}, "node 2 of 2: a, b"),
        ("ssh", {"VELOCITY_HOSTS": "a,b", "VELOCITY_NODE": "-1"}, "node -1 of 2: a, b"),
        ("slurm", {"SLURM_STEP_NODELIST": "a[x]"}, "this is no node of a job on slurm: invalid literal"),
        ("slurm", {"SLURM_STEP_NODELIST": "a"}, "this is no node of a job on slurm: 'SLURM_JOB_ID'"),
        ("local", {}, "this is no node of a job on local"),
    ],
)
def test_what_is_no_node_is_told_how_one_is_started(target: str, variables: dict[str, str], said: str):
    with pytest.raises(UserError) as caught:
        find_place(target, variables)
    [problem] = caught.value.problems
    assert problem.what.startswith(said) and problem.fix == f"velocity run JOB --on {target} starts it"


@pytest.mark.parametrize(
    ("names", "hosts"),
    [
        ("login", "login"),
        ("a,b-2", "a b-2"),
        ("gpu-[1-3]", "gpu-1 gpu-2 gpu-3"),
        ("gpu-[1-3,07],login", "gpu-1 gpu-2 gpu-3 gpu-07 login"),
        ("gpu[098-101]", "gpu098 gpu099 gpu100 gpu101"),
        ("r[1-2]n[1-2]", "r1n1 r1n2 r2n1 r2n2"),
        ("r[1,3].site", "r1.site r3.site"),
    ],
)
def test_slurms_short_form_is_written_out_in_its_order(names: str, hosts: str):
    assert list(expanded(names)) == hosts.split()


@pytest.mark.parametrize("names", ["gpu-[x-z]", "gpu-[]"])
def test_what_is_no_short_form_is_refused(names: str):
    with pytest.raises(ValueError):
        list(expanded(names))


def test_where_a_verdict_goes_is_what_the_target_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("VELOCITY_VERDICT", raising=False)
    assert place.verdict_file() is None
    monkeypatch.setenv("VELOCITY_VERDICT", "there/it.json")
    assert place.verdict_file() == Path("there/it.json")
