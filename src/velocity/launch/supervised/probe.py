"""What a host says of itself: this text is sent to the Python there, so it knows no other module of ours.

`python - PORT NAME...` prints JSON: `version` of Velocity, or None; `unknown`, those of the names that lead nowhere;
`taken`, why it cannot listen at the port, if that is not 0.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import sys


def _version() -> str | None:
    if importlib.util.find_spec("velocity") is None:
        return None
    import velocity

    return velocity.__version__


def _unknown(names: list[str]) -> list[str]:
    found = []
    for name in names:
        try:
            socket.getaddrinfo(name, None)
        except OSError:
            found.append(name)
    return found


def _taken(port: int) -> str:
    """Why not; an empty text where it can."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        return os.strerror(error.errno) if error.errno else str(error)
    return ""


def main(port: int, names: list[str]) -> None:
    """Print what there is to know."""
    print(json.dumps({"version": _version(), "unknown": _unknown(names), "taken": _taken(port) if port else ""}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
