"""The page of a run while it goes on, for browsers on this machine, or elsewhere with a token. It writes no run.

Nothing but the page and its state is served, to GET and HEAD alone. A request that names another host is refused: its
page would be one of a stranger that made its name point here (DNS rebinding).
"""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from velocity.errors import UserError, VelocityError
from velocity.report.facts import read_run
from velocity.report.mirrored import fetch_records, is_mirror
from velocity.report.page import Live, policy, render
from velocity.runs.folder import RunFolder
from velocity.runs.opened import status_of
from velocity.secrets import scrub
from velocity.terminal import say

LOCAL = ("127.0.0.1", "localhost", "::1")
ANY = ("0.0.0.0", "::")
MIRROR_SECONDS = 10.0  # between two looks at a mirror
CLIENT_SECONDS = 30.0  # that a client may be silent


class Watched:
    """A run's page as it is now: made anew where the run's files have changed since."""

    def __init__(
        self, folder: Path, shown_as: str, refresh: Callable[[], None] = lambda: None, *, here: bool = True
    ) -> None:
        """`refresh` is called before every look; `here`: whoever writes the run does so on this machine's disk."""
        self.folder, self.shown_as, self.refresh, self.here = folder, shown_as, refresh, here
        self._lock = threading.Lock()  # matplotlib's settings are one for all threads
        self._made: tuple[str, bytes] = ("", b"")

    def state(self) -> str:
        """Changes with what the page would say."""
        self.refresh()
        run = RunFolder(self.folder)
        known = [status_of(run)["state"]] if self.here else []
        files = [*self.folder.glob("*.json*"), run.job, run.log, *self.folder.glob("failures/**/*.json")]
        files += self.folder.glob("rows/*")
        for file in sorted(files):
            try:
                found = file.stat()
            except OSError:
                continue
            known.append(f"{file.name} {found.st_mtime_ns} {found.st_size}")
        return hashlib.sha256("\n".join(known).encode()).hexdigest()[:32]

    def page(self) -> tuple[str, bytes]:
        """The state, and the page that shows it."""
        with self._lock:
            state = self.state()
            if self._made[0] != state:
                name = Path(self.shown_as.rstrip("/")).name
                run = read_run(self.folder, label=name, shown_as=self.shown_as, here=self.here)
                self._made = (state, scrub(render([run], Live(state))).encode())
            return self._made


class Mirrored:
    """Looks at a mirror now and then. One that does not answer later on leaves what it said before."""

    def __init__(self, address: str, folder: Path) -> None:
        """What the mirror has now lies in the folder; errors as of `fetch_records`."""
        self.address, self.folder = address, folder
        self._lock = threading.Lock()
        fetch_records(address, folder)
        self._looked = time.monotonic()

    def refresh(self) -> None:
        """The folder is as the mirror was within the last seconds."""
        with self._lock:
            if time.monotonic() - self._looked < MIRROR_SECONDS:
                return
            try:
                fetch_records(self.address, self.folder)
            except (VelocityError, OSError) as error:
                say(f"WARNING: {str(error).splitlines()[0]}")
            self._looked = time.monotonic()


class Server(ThreadingHTTPServer):
    """Serves one page. `token` is the folder below which it lies; nothing where only this machine may ask."""

    daemon_threads = True
    allow_reuse_port = False  # a second one on the same port is refused

    def __init__(self, watched: Watched, host: str, port: int, token: str) -> None:
        """Bound to the address, and not serving yet; OSError where that cannot be."""
        self.watched, self.host, self.token = watched, host, token
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler)

    @property
    def address(self) -> str:
        """What a browser is to open."""
        name = socket.gethostname() if self.host in ANY else f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{name}:{self.server_address[1]}/{self.token}{'/' if self.token else ''}"

    def is_own(self, header: str) -> bool:
        """True where the Host of a request is a name of ours, whatever its port: a tunnel has another one."""
        name = header.strip().lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.rpartition(":")[0] or name
        if self.host not in ANY:
            return name in (LOCAL if self.host in LOCAL else (self.host.lower(),))
        own = {*LOCAL, socket.gethostname().lower(), socket.getfqdn().lower()}
        return name in own or _is_number(name)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a client that hangs up is no error of ours."""


def _is_number(name: str) -> bool:
    """True for an IP address: no stranger can make one point elsewhere."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    server_version, sys_version = "velocity", ""
    timeout = CLIENT_SECONDS
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # noqa: N802 - its name for the server
        """The page, or its state."""
        self._answer(body=True)

    def do_HEAD(self) -> None:  # noqa: N802
        """The same without a body."""
        self._answer(body=False)

    def _refuse(self) -> None:
        self._send(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET and HEAD\n", extra={"Allow": "GET, HEAD"}, close=True)

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _refuse

    def _answer(self, *, body: bool) -> None:
        if not self.server.is_own(self.headers.get("Host", "")):
            self._send(HTTPStatus.MISDIRECTED_REQUEST, b"not a name of this server\n", body=body)
            return
        name = self._asked()
        if name not in ("", "state"):
            self._send(HTTPStatus.NOT_FOUND, b"nothing here\n", body=body)
            return
        try:
            state, page = (self.server.watched.state(), b"") if name == "state" else self.server.watched.page()
        except (VelocityError, OSError, ValueError) as error:
            say(f"WARNING: {str(error).splitlines()[0]}")
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, b"the run cannot be read\n", body=body)
            return
        tag = f'"{state}"'
        if self.headers.get("If-None-Match") == tag:
            self._send(HTTPStatus.NOT_MODIFIED, b"", body=False, extra={"ETag": tag})
        elif name == "state":
            self._send(HTTPStatus.OK, state.encode(), body=body, extra={"ETag": tag})
        else:
            self._send(HTTPStatus.OK, page, body=body, kind="text/html", extra={"ETag": tag})

    def _asked(self) -> str | None:
        """What below the token was asked for; None where the token is another one."""
        path = self.path.partition("?")[0].removeprefix("/")
        if not self.server.token:
            return path
        token, slash, name = path.partition("/")
        right = secrets.compare_digest(token.encode(), self.server.token.encode())
        return name if right and slash else None

    def _send(  # noqa: PLR0913 - what an answer is made of
        self, status: HTTPStatus, content: bytes, *, body: bool = True, kind: str = "text/plain",
        extra: dict[str, str] | None = None, close: bool = False,
    ) -> None:  # fmt: skip
        self.send_response(status)
        safe = {
            "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin", "Content-Type": f"{kind}; charset=utf-8",
            "Content-Security-Policy": policy(Live("")) + "; frame-ancestors 'none'",
            "Content-Length": str(len(content)),
        }  # fmt: skip
        for name, value in {**safe, **(extra or {}), **({"Connection": "close"} if close else {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name in the class above
        """Nothing: the terminal is the user's."""


def watch(run: str, host: str, port: int) -> None:
    """The run's page is served until Ctrl-C; UserError where there is no such run, or the address cannot be had."""
    with (
        suppress(KeyboardInterrupt),
        TemporaryDirectory(prefix="velocity-watch-") as folder,
        _server(_watched(run, Path(folder)), host, port) as server,
    ):
        say(f"watching {run} at {server.address} until Ctrl-C")
        server.serve_forever()


def _watched(run: str, folder: Path) -> Watched:
    if is_mirror(run):
        watched = Watched(folder, run, Mirrored(run, folder).refresh, here=False)
    else:
        watched = Watched(Path(run).expanduser(), run)
    read_run(watched.folder)  # it says now that there is no run, not to a browser later
    return watched


def _server(watched: Watched, host: str, port: int) -> Server:
    token = "" if host in LOCAL else secrets.token_hex(16)
    try:
        return Server(watched, host, port, token)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        what = f"port {port} is taken" if taken else f"cannot serve at {host}, port {port}: {error.strerror or error}"
        raise UserError(what, "--port" if taken else "--host", "choose another one, e.g. --port 0 for any") from None
