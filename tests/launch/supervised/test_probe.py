"""What a host says of itself, by a text that its Python reads."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from velocity import __version__
from velocity.launch.supervised import probe


def answer(*arguments: str, options: tuple[str, ...] = ()) -> dict[str, Any]:
    command = [sys.executable, *options, "-", *arguments]
    done = subprocess.run(command, input=Path(probe.__file__).read_text(), capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def test_it_says_the_version_and_that_nothing_is_wrong():
    assert answer("0", "localhost") == {"version": __version__, "unknown": [], "taken": ""}


def test_a_python_without_velocity_says_so():
    assert answer("0", options=("-I", "-S"))["version"] is None


def test_names_that_lead_nowhere_are_said():
    assert answer("0", "localhost", "no-such-host.invalid", "127.0.0.1")["unknown"] == ["no-such-host.invalid"]


def test_a_port_is_taken_where_somebody_listens_on_any_address_and_free_again_afterwards():
    with socket.create_server(("127.0.0.1", 0)) as listens:
        port = str(listens.getsockname()[1])
        with socket.create_connection(("127.0.0.1", int(port))) as one:
            other, _ = listens.accept()
            assert answer(port)["taken"] == "Address already in use"
            other.close()
            one.recv(1)
    assert answer(port)["taken"] == "", "a connection that is over does not hold it"
