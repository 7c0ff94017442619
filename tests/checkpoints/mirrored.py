"""What tests of mirrors are made of: checkpoints without tensors, and a real S3 over HTTP, whose access log is read."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from moto.server import ThreadedMotoServer

from velocity.checkpoints.commit import commit, entry_of, name_of, temporary_of
from velocity.checkpoints.store import S3Store

KEY, SECRET = "AKIAPLANTED7EXAMPLE0", "planted/secret+that/lies+in/no/file/0001"


def make_checkpoint(run_folder: Path, step: int, *, parts: int = 2, size: int = 10_000) -> Path:
    """A committed checkpoint of random parts, other ones for each step."""
    final = run_folder / "checkpoints" / name_of(step)
    temporary = temporary_of(final)
    temporary.mkdir(parents=True)
    for rank in range(parts):
        (temporary / f"part-{rank:05}.safetensors").write_bytes(Random(1000 * step + rank).randbytes(size))
    (temporary / "state.json").write_text(f'{{"step": {step}}}')
    commit(final, {file.name: entry_of(file) for file in sorted(temporary.iterdir())})
    return final


def contents(folder: Path) -> dict[str, bytes]:
    """The files below a folder, by their names in it."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def wait_for(true: Callable[[], object], seconds: float = 60.0) -> None:
    """Nothing once it is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not true within {seconds} s"
        time.sleep(0.02)


class Server(logging.Handler):
    """moto's S3 in a thread of this process. What it holds outlives a stop."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[str] = []
        logging.getLogger("werkzeug").addHandler(self)
        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]
        self.buckets = 0

    def emit(self, record: logging.LogRecord) -> None:
        """A line of the server's access log."""
        if found := re.search(r'"(?:\x1b\[\d+m)*([A-Z]+ \S+) HTTP', record.getMessage()):
            self.requests.append(found[1])

    def sent(self, pattern: str) -> list[str]:
        """The files that were put there, in order; of the parts of a large one each counts."""
        return [found[1] for line in self.requests if (found := re.match(rf"PUT /\S*?({pattern})", line))]

    def stop(self) -> None:
        """Nobody answers at the address."""
        self._server.stop()

    def start(self) -> None:
        """It answers again, at the same address."""
        self._server = ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self._server.start()

    def bucket(self) -> str:
        """A new address for a mirror; the log is empty."""
        self.buckets += 1
        name = f"bucket-{self.buckets}"
        S3Store(f"s3://{name}").system.mkdir(name)
        self.requests.clear()
        return f"s3://{name}/runs/sft"
