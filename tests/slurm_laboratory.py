"""A real Slurm over the hosts of a laboratory. It needs root, and Debian's slurmctld, slurmd, slurm-client and munge.

Controller, daemons and munge are this laboratory's alone: they have its folder for all they write, and end with it.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.laboratory import Laboratory, needs

TOOLS = ("setpriv", "munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
READY_SECONDS = 60.0
REQUEUE_SECONDS = 5  # a requeued job waits so long; 120 on most clusters
# A daemon dies with the test that has started it. slurmd looks for systemd's cgroup, which a container does not have.
AS_DAEMON = """
mount -t tmpfs tmpfs /sys/fs/cgroup 2> /dev/null && mkdir -p /sys/fs/cgroup/systemd &&
  mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd 2> /dev/null
exec setpriv --pdeathsig KILL "$@"
"""
CONFIGURATION = """
ClusterName=laboratory
SlurmctldHost={first}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire={requeue}
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
ReturnToService=2
MpiDefault=none
KillWait=5
SlurmdTimeout=30
MailProg=/bin/true
SlurmdParameters=config_overrides
NodeName={hosts} CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=1-00:00:00 State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=1-00:00:00 State=UP PriorityTier=9
PartitionName=small Nodes={first} MaxTime=1-00:00:00 MaxNodes=1 State=UP PriorityTier=1
PartitionName=closed Nodes=ALL State=DOWN
"""


def why_not() -> str | None:
    """What is missing here; None where there can be a laboratory with Slurm."""
    missing = [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None]
    if missing:
        return f"no {', '.join(missing)}: apt-get install slurmctld slurmd slurm-client munge"
    return needs()


class Slurm(Laboratory):
    """A cluster of `names`, whose first host is also its login node. Its partitions: main, urgent, small, closed."""

    def __init__(self, folder: Path, count: int = 2) -> None:
        super().__init__(folder, count)
        folder.mkdir(parents=True, exist_ok=True)
        self._logs = (folder / "daemons.log").open("ab")
        self._started: list[subprocess.Popen[bytes]] = []

    def build(self) -> None:
        """Every host waits for jobs."""
        self._write()
        self._network()
        munge = self.folder / "munge"
        files = ("socket", "key-file", "log-file", "pid-file", "seed-file")
        self._start(self.names[0], "munged", "--foreground", "--force", *(f"--{one}={munge / one}" for one in files))
        wait_until((munge / "socket").exists, "munge answers", READY_SECONDS)
        self._start(self.names[0], "slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))
        for name in self.names:
            self.boot(name)
        wait_until(self._idle, f"Slurm is up; see {self._logs.name}", READY_SECONDS)

    def boot(self, name: str) -> None:
        """The host takes jobs."""
        self._start(name, "slurmd", "-D", "-f", str(self.folder / "slurm.conf"))

    def remove(self) -> None:
        """Nothing is left of it: no process, no namespace, no file of the system."""
        for daemon in self._started[1:2]:
            daemon.send_signal(signal.SIGTERM)  # the controller, so that it ends the process that it has beside it
            daemon.wait(20)
        super().remove()
        for daemon in self._started:
            daemon.wait(20)
        self._logs.close()

    def slurm(self, *command: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """A command's exit status and what it said, on the login node."""
        return self.run(self.names[0], *command, env=self.environment, timeout=timeout)

    def velocity(self, *arguments: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """The `velocity` command as one gives it on the login node."""
        return self.slurm(sys.executable, "-m", "velocity", *arguments, timeout=timeout)

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """The same, running."""
        command = self.command(self.names[0], sys.executable, "-m", "velocity", *arguments)
        return subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=self.environment
        )

    def show(self, job: str) -> dict[str, str]:
        """What Slurm says of a job."""
        return dict(re.findall(r"(\w+)=(\S*)", self.slurm("scontrol", "show", "job", job, "--oneliner").stdout))

    def clear(self) -> None:
        """No job is left, waiting or running."""
        self.slurm("scancel", "--user=root")
        wait_until(lambda: not self.slurm("squeue", "--noheader").stdout.strip(), "the queue is empty", READY_SECONDS)
        wait_until(self._idle, "the hosts are idle", READY_SECONDS)

    @property
    def environment(self) -> Mapping[str, str]:
        """What finds this Slurm."""
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": PATH}

    def _idle(self) -> bool:
        states = self.slurm("sinfo", "--noheader", "--Node", "--format=%t", "--partition=main").stdout.split()
        return states == ["idle"] * len(self.names)

    def _start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        daemon = subprocess.Popen(
            self.command(name, "bash", "-c", AS_DAEMON, "_", *command), env=self.environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=self._logs, stderr=self._logs,
        )  # fmt: skip
        self._started.append(daemon)
        return daemon

    def _write(self) -> None:
        for name in ("munge", "state", *(f"spool/{name}" for name in self.names)):
            (self.folder / name).mkdir(parents=True)
        key = self.folder / "munge" / "key-file"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        settings = {"first": self.names[0], "hosts": ",".join(self.names), "folder": self.folder}
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format(**settings, requeue=REQUEUE_SECONDS))


@contextmanager
def slurm(folder: Path, count: int = 2) -> Iterator[Slurm]:
    """A cluster of so many hosts, as long as this lasts; the test is skipped where there can be none."""
    if why := why_not():
        pytest.skip(why)
    made = Slurm(folder, count)
    try:
        made.build()
        yield made
    finally:
        made.remove()


def wait_until(holds: Callable[[], object], what: str, seconds: float) -> None:
    """It holds; AssertionError that says what did not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.2)
