"""Where the nodes of a job meet: the first one serves, the others come to it. It knows no job, no rank and no torch.

Every node beats once a second. Whose beats stop is lost, and every other node hears of it; so no wait here is endless,
whatever the network does. What is exchanged is text.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
import xmlrpc.client
from collections.abc import Callable, Sequence
from socketserver import ThreadingMixIn
from typing import Any
from xmlrpc.server import SimpleXMLRPCRequestHandler, SimpleXMLRPCServer

from velocity.errors import JobError, UserError

BEAT_SECONDS = 1.0
SILENT_SECONDS = 30.0  # without a beat: the host, or the network to it, is gone
ANSWER_SECONDS = 10.0
POLL_SECONDS = 0.1
PATIENCE_SECONDS = 900.0  # for the last host's name and process to appear
LEAVE_SECONDS = 10.0
ABORTED = "aborted"


class LostHost(JobError):
    """A node gives no sign any more. `index` is its place among the hosts."""

    def __init__(self, hosts: Sequence[str], index: int) -> None:
        what = f"host {hosts[index]} gave no sign for {SILENT_SECONDS:.0f} s: it, or the network to it, is down"
        super().__init__(what, f"node {index} of {len(hosts)}", "the same command goes on, with hosts that are up")
        self.index = index


class Aborted(Exception):  # noqa: N818 - of another node, which says why
    """Another node has given up; the argument is what it said."""


class Meeting:
    """One a node. Every node makes one, and calls `gather` in the same order."""

    def __init__(
        self, hosts: Sequence[str], index: int, port: int, *, patience_seconds: float = PATIENCE_SECONDS
    ) -> None:
        """All nodes are there; UserError where the port is taken, JobError where a host does not come."""
        self.hosts, self.index, self.port = tuple(hosts), index, port
        self.news: dict[str, Any] = {}  # what the last beat brought: `told` by nodes, by place, and `flags`
        self.says: Callable[[], str] = lambda: ""  # what our beat tells all others
        self._lost: int | None = None
        self._over = threading.Event()
        self._table: _Table | None = None
        self._server: _Server | None = None
        end = time.monotonic() + patience_seconds
        if index == 0:
            self._table = _Table(len(hosts))
            self._server = _serve(self._table, hosts[0], port)
        else:
            _wait_for_names(hosts, end)
        try:
            self._wait_for_all(end)
        except BaseException:
            self._close()
            raise
        self._beats = threading.Thread(target=self._beat, name="beats", daemon=True)
        self._beats.start()

    @property
    def lost(self) -> LostHost | None:
        """The host that gives no sign any more."""
        return None if self._lost is None else LostHost(self.hosts, self._lost)

    def gather(self, name: str, text: str, *, without_lost: bool = False) -> list[str | None]:
        """What each node says under this name; LostHost where one is gone. `without_lost`: None in its place.

        Aborted where another one has given up.
        """
        self._ask("post", name, self.index, text)
        while True:
            found = self._posted(name, by_all=True)
            missing = [index for index, one in enumerate(found) if one is None]
            if not missing:
                return found
            if (lost := self.lost) is not None:
                if not without_lost:
                    raise lost
                if set(missing) <= {lost.index, *self.news.get("silent", ())}:
                    return found
            time.sleep(POLL_SECONDS)

    def from_first(self, name: str, text: str | None) -> str:
        """What the first node says under this name; it alone gives a text. Raises what `gather` raises."""
        if text is not None:
            self._ask("post", name, 0, text)
            return text
        while True:
            found = self._posted(name, by_all=False)
            if found[0] is not None:
                return found[0]
            if (lost := self.lost) is not None:
                raise lost
            time.sleep(POLL_SECONDS)

    def abort(self, text: str) -> None:
        """Whoever waits for us waits no more; the first node that aborts is heard."""
        with contextlib.suppress(LostHost):
            self._ask("post", ABORTED, self.index, text)
            self._ask("raise_flag", ABORTED)

    def _posted(self, name: str, *, by_all: bool) -> list[str | None]:
        """What was said under this name so far; Aborted where what is still missing will not come."""
        found: list[str | None] = self._ask("posted", name)
        if None in (found if by_all else found[:1]):
            aborted: list[str | None] = self._ask("posted", ABORTED)
            if said := next(filter(None, aborted), None):
                raise Aborted(said)
        return found

    def raise_flag(self, name: str) -> None:
        """Every node hears of it with its next beat, in `news`."""
        self._ask("raise_flag", name)

    def leave(self) -> None:
        """We need the others no more. The first one stays until they, too, need it no more, or are gone."""
        with contextlib.suppress(JobError):
            self._ask("post", "left", self.index, "")
            end = time.monotonic() + LEAVE_SECONDS
            while self._table is not None and None in self._table.posted("left") and time.monotonic() < end:
                time.sleep(POLL_SECONDS)
        self._close()

    def _close(self) -> None:
        self._over.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def _wait_for_all(self, end: float) -> None:
        """Every node has come."""
        while True:
            with contextlib.suppress(OSError, xmlrpc.client.Error, http.client.HTTPException):
                self._call("post", "came", self.index, "")
                found = self._call("posted", "came")
                if None not in found:
                    return
                missing = [host for host, one in zip(self.hosts, found, strict=True) if one is None]
                if time.monotonic() > end:
                    raise _absent(missing)
            if time.monotonic() > end:
                raise _absent(self.hosts[:1])
            time.sleep(POLL_SECONDS if self.index == 0 else 5 * POLL_SECONDS)

    def _ask(self, method: str, *arguments: Any) -> Any:
        """The answer; LostHost where the first node does not give one for long."""
        end = time.monotonic() + SILENT_SECONDS
        while True:
            try:
                return self._call(method, *arguments)
            except (OSError, xmlrpc.client.Error, http.client.HTTPException):
                if time.monotonic() > end or self._lost == 0:
                    self._lost = 0
                    raise LostHost(self.hosts, 0) from None
            time.sleep(10 * POLL_SECONDS)

    def _call(self, method: str, *arguments: Any) -> Any:
        if self._table is not None:
            return getattr(self._table, method)(*arguments)
        return getattr(_proxy(self.hosts[0], self.port), method)(*arguments)

    def _beat(self) -> None:
        heard = time.monotonic()
        while not self._over.wait(BEAT_SECONDS):
            try:
                self.news = self._call("beat", self.index, self.says())
                heard = time.monotonic()
                silent = self.news["silent"]
                if silent and self._lost is None:
                    self._lost = silent[0]
            except (OSError, xmlrpc.client.Error, http.client.HTTPException):
                if time.monotonic() - heard > SILENT_SECONDS:
                    self._lost = 0


class _Table:
    """What nodes have said, on the first one. Any thread may ask."""

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes
        self._lock = threading.Lock()
        self._notes: dict[str, list[str | None]] = {}
        self._beats: dict[int, float] = {}
        self._told = [""] * nodes
        self._flags: set[str] = set()

    def post(self, name: str, index: int, text: str) -> bool:
        with self._lock:
            self._notes.setdefault(name, [None] * self.nodes)[index] = text
            self._beats[index] = time.monotonic()
        return True

    def posted(self, name: str) -> list[str | None]:
        with self._lock:
            return list(self._notes.get(name, [None] * self.nodes))

    def raise_flag(self, name: str) -> bool:
        with self._lock:
            self._flags.add(name)
        return True

    def beat(self, index: int, tells: str) -> dict[str, Any]:
        now = time.monotonic()
        with self._lock:
            self._beats[index], self._told[index] = now, tells
            left = self._notes.get("left", [None] * self.nodes)
            silent = [one for one, at in self._beats.items() if now - at > SILENT_SECONDS and left[one] is None]
            return {"silent": sorted(silent), "told": list(self._told), "flags": sorted(self._flags)}


class _Server(ThreadingMixIn, SimpleXMLRPCServer):
    """Answers each node in a thread of its own."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128


class _Quiet(SimpleXMLRPCRequestHandler):
    """A slow or dead client holds no thread for ever."""

    timeout = SILENT_SECONDS


def _serve(table: _Table, host: str, port: int) -> _Server:
    try:
        server = _Server(("", port), requestHandler=_Quiet, logRequests=False, allow_none=True)
    except OSError as error:
        what = f"the nodes cannot meet on port {port} of {host}: {error.strerror}"
        raise UserError(what, "launch.port", "is another job running there? end it, or set another port") from None
    for name in ("post", "posted", "raise_flag", "beat"):
        server.register_function(getattr(table, name), name)
    threading.Thread(target=server.serve_forever, args=(POLL_SECONDS,), name="meeting", daemon=True).start()
    return server


class _Transport(xmlrpc.client.Transport):
    """A connection that gives up in seconds."""

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        connection = super().make_connection(host)
        connection.timeout = ANSWER_SECONDS
        return connection


def _proxy(host: str, port: int) -> xmlrpc.client.ServerProxy:
    address = f"[{host}]" if ":" in host else host
    return xmlrpc.client.ServerProxy(f"http://{address}:{port}", transport=_Transport(), allow_none=True)


def _wait_for_names(hosts: Sequence[str], end: float) -> None:
    """The first host's name has an address: a cluster's names may appear only minutes after its machines."""
    while True:
        try:
            socket.getaddrinfo(hosts[0], None)
            return
        except OSError:
            if time.monotonic() > end:
                what = f"the name {hosts[0]}, of the first host, has no address"
                raise JobError(
                    what, "where the nodes meet", "is it in the DNS, or in /etc/hosts, of every node?"
                ) from None
        time.sleep(10 * POLL_SECONDS)


def _absent(hosts: Sequence[str]) -> JobError:
    names = ", ".join(hosts[:3]) + (f" and {len(hosts) - 3} more" if len(hosts) > 3 else "")
    return JobError(f"no sign of {names}", "where the nodes meet", "was it started there? the log of each node says")


def interface_towards(host: str) -> str | None:
    """The name of our network interface towards the host, for libraries that would guess; None where none is found."""
    import fcntl
    import struct

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))  # sends nothing
            ours = probe.getsockname()[0]
            for _, name in socket.if_nameindex():
                with contextlib.suppress(OSError):
                    answer = fcntl.ioctl(probe.fileno(), 0x8915, struct.pack("256s", name[:15].encode()))  # SIOCGIFADDR
                    if socket.inet_ntoa(answer[20:24]) == ours:
                        return name
        except OSError:
            return None
    return None
