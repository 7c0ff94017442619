"""A laboratory of hosts on one machine: network namespaces with names and addresses of their own, and sshd on each.

They share this machine's disk, processors and processes. The launcher's place is the hub, which reaches all of them.
It needs root, iproute2 and OpenSSH's server; tests skip where these are missing.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NETWORK = "10.77.0"
SETUP_SECONDS = 20.0

_numbers = itertools.count(1)


def needs() -> str | None:
    """Why there can be no laboratory here; None where there can."""
    if os.geteuid() != 0:
        return "a laboratory of network namespaces needs root"
    if missing := [name for name in ("ip", "ssh", "ssh-keygen", "unshare", "/usr/sbin/sshd") if not shutil.which(name)]:
        return f"a laboratory of network namespaces needs {', '.join(missing)}"
    probe = f"velocity-probe-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False).returncode:
        return "this machine lets nobody make network namespaces"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return None


class Laboratory:
    """So many hosts, `names`, and a `hub` that is connected with all of them. `folder` holds keys and logs."""

    def __init__(self, folder: Path, count: int = 2, *, prefix: str | None = None) -> None:
        prefix = prefix or f"lab{os.getpid()}-{next(_numbers)}-"  # no other session's hosts have such names
        self.names = [f"{prefix}{number}" for number in range(1, count + 1)]
        self.addresses = {name: f"{NETWORK}.{10 + number}" for number, name in enumerate(self.names, 1)}
        self.hub = f"{prefix}hub"
        self.folder = folder
        self.config = folder / "ssh_config"
        self.mounts: dict[str, Mapping[Path, Path]] = {}  # of a host: folders that it sees at another place
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def build(self) -> None:
        """The hosts exist, know each other's names, and answer."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._network()
        self._keys()
        for name in self.names:
            self.boot(name)

    def remove(self) -> None:
        """Nothing is left of it: no process, no namespace, no file of the system."""
        for name in [*self.names, self.hub]:
            self.kill(name)
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
            shutil.rmtree(f"/etc/netns/{name}", ignore_errors=True)
        with contextlib.suppress(OSError):  # another session's are in it
            Path("/etc/netns").rmdir()

    def command(self, name: str, *command: object, mounts: Mapping[Path, Path] | None = None) -> list[str]:
        """What runs the command as that host (or the hub); it sees each folder of `mounts` at another place."""
        binds = [f"mkdir -p '{at}' && mount --bind '{of}' '{at}'" for of, at in (mounts or {}).items()]
        script = " && ".join([f"hostname {name}", *binds, 'exec "$@"'])
        inside = ["unshare", "--uts", "--mount", "--propagation", "private", "sh", "-c", script, name]
        return ["ip", "netns", "exec", name, *inside, *map(str, command)]

    def run(self, name: str, *command: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """The command ran as that host, and this is how it ended."""
        return subprocess.run(
            self.command(name, *command), **{"capture_output": True, "text": True, "timeout": 240, **options}
        )

    def boot(self, name: str) -> None:
        """The host has an sshd that answers; who comes that way sees its `mounts`, too."""
        options = ["-D", "-e", "-f", self.folder / "sshd_config", "-o", f"PidFile={self.folder / name}.pid"]
        command = self.command(name, "/usr/sbin/sshd", *options, mounts=self.mounts.get(name))
        with (self.folder / f"{name}.log").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        _wait_until(lambda: self.run(self.hub, "ssh", "-F", self.config, name, "true").returncode == 0, f"{name} is up")

    def processes(self, name: str) -> list[int]:
        """Those that run on the host, the dead ones not counted."""
        listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
        return [pid for pid in map(int, listed.split()) if _alive(pid)]

    def jobs(self, name: str) -> list[str]:
        """The command lines of what runs on the host, but for its sshd."""
        found = []
        for pid in self.processes(name):
            with contextlib.suppress(OSError):  # it ended while we looked
                found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip())
        return [line for line in found if line and "sshd" not in line]

    def kill(self, name: str) -> None:
        """The host dies: nothing runs there any more."""
        _wait_until(lambda: not self._kill_once(name), f"nothing runs on {name}")
        if daemon := self._daemons.pop(name, None):
            daemon.wait()

    def _kill_once(self, name: str) -> list[int]:
        pids = self.processes(name)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return pids

    def cut(self, name: str) -> None:
        """The host's cable is pulled: nothing comes from there or arrives."""
        _ip("-n", name, "link", "set", "eth0", "down")

    def mend(self, name: str) -> None:
        """It is plugged in again."""
        _ip("-n", name, "link", "set", "eth0", "up")

    def _network(self) -> None:
        names = [*self.names, self.hub]
        known = [*self.addresses.items(), (self.hub, f"{NETWORK}.1")]
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in known)]
        for name in names:
            files = Path("/etc/netns", name)
            files.mkdir(parents=True)
            (files / "hosts").write_text("\n".join(lines) + "\n")
            (files / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", self.hub, "link", "add", "br0", "type", "bridge")
        _ip("-n", self.hub, "link", "set", "br0", "up")
        _ip("-n", self.hub, "addr", "add", f"{NETWORK}.1/24", "dev", "br0")
        for number, (name, address) in enumerate(self.addresses.items()):
            _ip("-n", self.hub, "link", "add", f"v{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("-n", self.hub, "link", "set", f"v{number}", "master", "br0", "up")
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")

    def _keys(self) -> None:
        Path("/run/sshd").mkdir(exist_ok=True)
        self.folder.chmod(0o700)
        for key in ("user", "host"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / key)]
            subprocess.run(command, check=True)
        host_key = " ".join((self.folder / "host.pub").read_text().split()[:2])
        (self.folder / "known_hosts").write_text("".join(f"{name} {host_key}\n" for name in self.names))
        (self.folder / "sshd_config").write_text(
            f"HostKey {self.folder}/host\nAuthorizedKeysFile {self.folder}/user.pub\n"
            "PermitRootLogin prohibit-password\nPasswordAuthentication no\nUsePAM no\nStrictModes no\n"
        )
        self.config.write_text(
            f"IdentityFile {self.folder}/user\nIdentitiesOnly yes\nUserKnownHostsFile {self.folder}/known_hosts\n"
        )


@contextmanager
def laboratory(folder: Path, count: int = 2, *, prefix: str | None = None) -> Iterator[Laboratory]:
    """A laboratory, as long as this lasts; the test is skipped where there can be none."""
    if why := needs():
        pytest.skip(why)
    made = Laboratory(folder, count, prefix=prefix)
    try:
        made.build()
        yield made
    finally:
        made.remove()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _wait_until(done: Any, what: str) -> None:
    deadline = time.monotonic() + SETUP_SECONDS
    while not done():
        assert time.monotonic() < deadline, f"not within {SETUP_SECONDS:.0f} s: {what}"
        time.sleep(0.05)
