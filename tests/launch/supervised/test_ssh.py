"""The target ssh: what is sent to each host, and what is found out about hosts before anything starts."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.laboratory import Laboratory, laboratory
from tests.making import job_data
from velocity import __version__
from velocity.config.load import load_job
from velocity.config.ssh import SshConfig
from velocity.config.training import TrainingJob
from velocity.errors import UserError
from velocity.launch.launcher import Submission
from velocity.launch.supervised.launcher import SupervisedLauncher
from velocity.launch.supervised.ssh import Ssh, address_of, folder_of, ssh

GOLDEN = Path(__file__).parent / "golden" / "ssh.json"
FILES = {"1-sft.yaml": "task: sft\n", "2-it's.yaml": "task: generate\n"}


def submission(at: Path, *overrides: str, **launch: Any) -> Submission:
    job = TrainingJob.model_validate({**job_data(at), "launch": {"kind": "ssh", **launch}})
    return Submission(
        "sft-1125-2215", at / ".velocity" / "jobs" / "sft-1125-2215", [job, job], FILES, overrides
    )  # fmt: skip


def rendered(at: Path, *overrides: str, **launch: Any) -> dict[str, Any]:
    files = SupervisedLauncher(Ssh()).render(submission(at, *overrides, **launch))
    assert list(files) == ["nodes.json"]
    return dict(json.loads(files["nodes.json"]))


def test_all_that_is_sent_is_the_golden_file():
    text = SupervisedLauncher(Ssh()).render(submission(
        Path("/data/my project"), "seed=1", hosts=["gpu-1", "root@gpu-2"], python="/opt/venv/bin/python",
        config="ssh_config", port=29500, processes=16, max_restarts=2,
    ))["nodes.json"]  # fmt: skip
    assert text == GOLDEN.read_text("utf-8")


def test_a_node_finds_in_its_command_what_the_submission_was_loaded_as(tmp_path: Path):
    (tmp_path / "hosts").write_text("gpu-1 slots=8\n# none\nbob@gpu-2 slots=8\n")
    [_, second] = rendered(tmp_path, hostfile=str(tmp_path / "hosts"), processes=4, hang_seconds=9)["nodes"]
    (tmp_path / "job.yaml").write_text(json.dumps({**job_data(tmp_path), "launch": {"kind": "slurm", "nodes": 2}}))
    overrides = [word for word in second["order"]["command"] if "=" in word]
    launch = load_job(tmp_path / "job.yaml", overrides, "ssh").job.launch
    assert launch == SshConfig(hosts=("gpu-1", "gpu-2"), processes=4, hang_seconds=9)


def test_python_and_folder_are_ours_if_left_out(tmp_path: Path):
    [node] = rendered(tmp_path, hosts="a")["nodes"]
    assert node["command"][-1] == f"cd {tmp_path} && exec {sys.executable} -m velocity.launch.supervised.host"
    assert node["order"]["command"][0] == sys.executable


def test_each_host_keeps_the_files_in_a_folder_of_its_own_so_that_a_shared_disk_does_no_harm(tmp_path: Path):
    folders = {node["order"]["folder"] for node in rendered(tmp_path, hosts=["a", "b", "c"])["nodes"]}
    assert len(folders) == 3


def test_no_connection_is_shared_and_none_asks_for_a_password():
    command = ssh(SshConfig(hosts=("a",)), "a", "true")
    assert {"BatchMode=yes", "ControlMaster=no", "ControlPath=none"} <= {*command}
    done = subprocess.run([*command[:-3], "-G", *command[-3:]], capture_output=True, text=True, check=True)
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert (said["hostname"], said["batchmode"], said["serveraliveinterval"]) == ("a", "yes", "15")


@pytest.mark.parametrize(("host", "address"), [("a", "a"), ("bob@a", "a"), ("10.0.0.7", "10.0.0.7")])
def test_others_know_a_host_without_its_user(host: str, address: str):
    assert address_of(host) == address


@pytest.mark.parametrize(
    ("folder", "there"), [(None, "/data/x"), ("/a b", "/a b"), ("~/p", "p"), ("~", "."), ("p", "p")]
)
def test_a_folder_begins_at_the_root_or_at_home(folder: str | None, there: str):
    assert folder_of(submission(Path("/data/x"), hosts="a", folder=folder)) == there


@pytest.fixture(name="lab", scope="module")
def _lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    with laboratory(tmp_path_factory.mktemp("ssh") / "lab") as lab:
        yield lab


CHECK = """
import json, sys
from pathlib import Path
from tests.launch.supervised.test_ssh import submission
from velocity.errors import UserError
from velocity.launch.supervised.ssh import Ssh
try:
    Ssh().check(submission(Path.cwd(), **json.loads(sys.argv[1])))
except UserError as error:
    print(error)
"""


def problems(lab: Laboratory, folder: Path, **launch: Any) -> list[list[str]]:
    """What is said of the hosts, from the hub: the lines of each problem."""
    values = {"hosts": lab.names, "config": str(lab.config), "folder": str(folder), "python": sys.executable, **launch}
    root = Path(__file__).resolve().parents[3]
    done = lab.run(lab.hub, sys.executable, "-c", CHECK, json.dumps(values), cwd=root)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    return [lines[start : start + 3] for start in range(0, len(lines), 3)]


def test_hosts_that_could_run_it_have_no_problem(lab: Laboratory, tmp_path: Path):
    assert problems(lab, tmp_path) == []


def test_an_unknown_host_is_named_once_by_ssh_and_once_by_the_host_that_does_not_know_it(
    lab: Laboratory, tmp_path: Path
):
    first = lab.names[0]
    [ours, theirs] = problems(lab, tmp_path, hosts=[first, "gpu-7"])
    assert ours[0] == f"{first} does not know the host gpu-7" and ours[1] == "  where: launch.hosts: gpu-7"
    assert theirs[0].startswith("unknown host gpu-7: ssh: Could not resolve") and theirs[1] == ours[1]


def test_a_host_that_lets_us_not_in_is_named(lab: Laboratory, tmp_path: Path):
    config = tmp_path / "without_key"
    config.write_text(lab.config.read_text().replace("IdentityFile", "IdentityFile none\n#"))
    found = problems(lab, tmp_path, hosts=lab.names[:1], config=str(config))
    assert found[0][0].startswith(f"permission denied by {lab.names[0]}: ")
    assert f"ssh-copy-id {lab.names[0]}" in found[0][2]


def test_a_host_whose_key_is_not_known_is_named(lab: Laboratory, tmp_path: Path):
    config = tmp_path / "without_hosts"
    config.write_text(lab.config.read_text().replace("UserKnownHostsFile", "UserKnownHostsFile /dev/null\n#"))
    [found] = problems(lab, tmp_path, hosts=lab.names[:1], config=str(config))
    assert found[0].startswith(f"the key of {lab.names[0]} is not known here")


def test_a_host_that_is_down_is_named(lab: Laboratory, tmp_path: Path):
    [found] = problems(lab, tmp_path, hosts=[lab.hub])  # has no sshd
    assert found[0].startswith(f"{lab.hub} cannot be reached: ssh: connect to host") and "refused" in found[0]


def test_a_folder_that_is_not_there_is_named_on_each_host(lab: Laboratory, tmp_path: Path):
    found = problems(lab, tmp_path / "none")
    assert [one[1] for one in found] == [f"  where: launch.folder on {name}" for name in lab.names]
    assert all("has no such folder" in one[0] for one in found)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (None, "has no such Python"),
        ('exec {python} -I -S "$@"', "has no Velocity"),
        ('PYTHONPATH=old exec {python} "$@"', f"has Velocity 0.0.1, and this machine {__version__}"),
        ("echo it is broken >&2; exit 3", "does not work: it is broken"),
    ],
)
def test_a_python_that_could_not_run_it_is_named(lab: Laboratory, tmp_path: Path, code: str | None, expected: str):
    python = tmp_path / "python"
    if code is not None:
        python.write_text(f"#!/bin/sh\n{code.format(python=sys.executable)}\n")
        python.chmod(0o755)
    (tmp_path / "old" / "velocity").mkdir(parents=True)
    (tmp_path / "old" / "velocity" / "__init__.py").write_text("__version__ = '0.0.1'\n")
    found = problems(lab, tmp_path, python=str(python))
    assert [one[1] for one in found] == [f"  where: launch.python on {name}" for name in lab.names]
    assert all(expected in one[0] for one in found), found


def test_a_taken_port_of_the_first_host_is_named_and_one_of_another_host_does_not_matter(
    lab: Laboratory, tmp_path: Path
):
    listens = (
        "import socket, sys; s = socket.create_server(('', 29411)); print('listens', flush=True); sys.stdin.read()"
    )
    command = lab.command(lab.names[0], sys.executable, "-c", listens)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"listens\n"
        [found] = problems(lab, tmp_path, port=29411)
        assert problems(lab, tmp_path, port=29411, hosts=lab.names[::-1]) == []
        process.communicate()
    assert found[:2] == [f"port 29411 of {lab.names[0]} is taken: Address already in use", "  where: launch.port"]
    assert problems(lab, tmp_path, port=29411) == []


def test_without_ssh_nothing_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no ssh on this machine"):
        Ssh().check(submission(tmp_path, hosts=socket.gethostname()))
