"""kubectl, as it is installed here: what it is asked, and what it answers. It knows no job."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from velocity.errors import JobError, UserError

ANSWER_SECONDS = 60
# The cluster's own words; or kubectl's, of what the cluster has told it that objects look like.
REFUSED = re.compile(r'Error from server|The request is invalid|The \w+ ".*" is invalid|error: error validating')
FIX = "kubectl cluster-info says whether the cluster is reached, and as whom"


class Refused(UserError):
    """The cluster was reached, and says no. Exit status 2."""

    def __init__(self, said: str, where: str, fix: str = "") -> None:
        super().__init__(said, where, fix)
        self.not_found = "(NotFound)" in said
        self.forbidden = "(Forbidden)" in said


@dataclass(frozen=True)
class Kubectl:
    """kubectl, aimed at a namespace of a cluster."""

    context: str | None
    namespace: str

    def command(self, *arguments: str) -> list[str]:
        """What is run."""
        aimed = [] if self.context is None else ["--context", self.context]
        return ["kubectl", *aimed, "--namespace", self.namespace, *arguments]

    def ask(self, *arguments: str, given: str | None = None) -> str:
        """Its standard output. Refused where the cluster says no, JobError where it does not answer."""
        command = self.command(f"--request-timeout={ANSWER_SECONDS}s", *arguments)
        try:
            done = subprocess.run(
                command, input=given, stdin=subprocess.DEVNULL if given is None else None, capture_output=True,
                text=True, timeout=2 * ANSWER_SECONDS, check=False,
            )  # fmt: skip
        except FileNotFoundError:
            raise UserError("kubectl is not installed", "--on kubernetes", "install kubectl and log it in") from None
        except subprocess.TimeoutExpired:
            raise JobError("the cluster does not answer in time", self.where, FIX) from None
        if done.returncode == 0:
            return done.stdout
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()] or [done.stdout.strip()]
        if REFUSED.match(done.stderr):
            raise Refused(" ".join(said), self.where)
        if "context" in said[-1] and "does not exist" in said[-1]:
            raise UserError(f"kubectl has no context {self.context}", "launch.context", "kubectl config get-contexts")
        raise JobError(said[-1], self.where, FIX)

    def get(self, *arguments: str) -> dict[str, Any] | None:
        """What the cluster knows of an object, or of many; None where there is none."""
        try:
            found: dict[str, Any] = json.loads(self.ask("get", *arguments, "--output", "json"))
        except Refused as error:
            if error.not_found:
                return None
            raise
        return found

    def may(self, *arguments: str) -> bool:
        """True where we may do that, as the cluster says."""
        try:
            return self.ask("auth", "can-i", *arguments).strip().startswith("yes")
        except JobError as error:  # a no ends with 1, and says no
            if str(error).splitlines()[0].strip() == "no":
                return False
            raise

    def stream(self, *arguments: str) -> subprocess.Popen[str]:
        """It runs, and its lines are read while they come."""
        return subprocess.Popen(
            self.command(*arguments), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, errors="replace",
        )  # fmt: skip

    @property
    def where(self) -> str:
        """What was asked, in words."""
        return f"kubectl, namespace {self.namespace}" + (f", context {self.context}" if self.context else "")


def current_context() -> str | None:
    """The context that kubectl uses where none is named; None where it has none, as inside a cluster."""
    if shutil.which("kubectl") is None:
        raise UserError("kubectl is not installed", "--on kubernetes", "install kubectl and log it in")
    done = subprocess.run(_CURRENT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    return done.stdout.strip() or None


_CURRENT: Sequence[str] = ("kubectl", "config", "current-context")
