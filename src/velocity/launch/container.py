"""The container image: built from a checkout, pushed to a registry, remembered by its digest. It knows no target."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from velocity import __file__ as here
from velocity import __version__
from velocity.errors import JobError, UserError
from velocity.files import write_atomically
from velocity.launch.launcher import shell
from velocity.terminal import say

Accelerator = Literal["cpu", "cuda"]
BASES: Mapping[str, str] = {"cpu": "library/debian:bookworm-slim", "cuda": "nvidia/cuda:13.0.2-devel-ubuntu24.04"}
HUB = "docker.io"  # where docker looks by itself; the others want to be told
TOOLS = ("docker", "podman", "buildah")
RECORD = Path(".velocity", "image.json")
DOCKERFILE = Path("docker", "Dockerfile")
ECR = re.compile(r"(?P<account>\d{12})\.dkr\.ecr(-fips)?\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(\.cn)?")
NAME = re.compile(r"[\w.-]+(?::\d+)?(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)+")
TAG = re.compile(r"\w[\w.-]{0,127}")


@dataclass(frozen=True)
class Build:
    """What is built: a variant of the image, of a checkout, under a local name."""

    accelerator: Accelerator
    tag: str
    version: str = ""
    revision: str = ""
    pip_config: str | None = None  # the file that says where pip finds packages; it stays in no layer
    options: Sequence[str] = ()  # of the tool


@dataclass(frozen=True)
class Pushed:
    """An image in a registry, by its digest."""

    image: str  # REGISTRY/NAME@sha256:…
    accelerator: str
    time: float = field(default_factory=time.time)


def build_command(tool: str, build: Build) -> list[str]:
    """What builds the image, in the checkout's folder."""
    arguments = {
        "ACCELERATOR": build.accelerator, "BASE": f"{HUB}/{BASES[build.accelerator]}",
        "VERSION": build.version, "REVISION": build.revision,
    }  # fmt: skip
    # SageMaker reads Docker's own manifests; the others' default is OCI's
    made = [tool, "build"] if tool == "docker" else [tool, "build", "--format", "docker"]
    made += ["--file", str(DOCKERFILE), "--tag", build.tag]
    for name, value in arguments.items():
        made += ["--build-arg", f"{name}={value}"]
    if build.pip_config is not None:
        made += ["--secret", f"id=pip,src={build.pip_config}"]
    return [*made, *build.options, "."]


def push_commands(tool: str, tag: str, to: str, digest_file: str, options: Sequence[str] = ()) -> list[list[str]]:
    """What pushes the local image `tag` as `to`; the last one prints or writes its digest."""
    if tool == "docker":
        digests = ["docker", "image", "inspect", "--format", "{{json .RepoDigests}}", to]
        return [["docker", "tag", tag, to], ["docker", "push", *options, to], digests]
    there = f"docker://{to}" if tool == "buildah" else to
    return [[tool, "push", "--digestfile", digest_file, *options, tag, there]]


def id_command(tool: str, tag: str) -> list[str]:
    """What prints the content's own name of the local image."""
    if tool == "buildah":
        return ["buildah", "inspect", "--type", "image", "--format", "{{.FromImageID}}", tag]
    return [tool, "image", "inspect", "--format", "{{.Id}}", tag]


def login_command(tool: str, registry: str) -> list[str]:
    """What logs the tool in; the password comes over standard input, where no list of processes shows it."""
    return [tool, "login", "--username", "AWS", "--password-stdin", registry]


def find_tool(asked: str | None = None) -> str:
    """The tool that is asked for, or the first that is installed; UserError where there is none."""
    if asked is not None and asked not in TOOLS:
        raise UserError(f"unknown tool {asked}", "--tool", f"one of {', '.join(TOOLS)}")
    found = next((tool for tool in ([asked] if asked else TOOLS) if shutil.which(tool)), None)
    if found is None:
        what = f"{asked or 'none of ' + ', '.join(TOOLS)} is installed, and one of them builds images"
        raise UserError(what, "--tool", "install docker, podman or buildah on this machine")
    return found


def find_checkout() -> Path:
    """The folder that the image is built from: this one, or that of an editable installation."""
    for folder in (Path.cwd(), Path(here).parents[2]):
        if (folder / DOCKERFILE).is_file() and (folder / "pyproject.toml").is_file():
            return folder
    raise UserError(f"there is no {DOCKERFILE} here", str(Path.cwd()), "run it in a checkout of Velocity")


def build_image(
    accelerator: Accelerator = "cuda",
    *,
    tag: str | None = None,
    tool: str | None = None,
    pip_config: str | None = None,
    options: Sequence[str] = (),
) -> str:
    """The image was built from the checkout; its local name. What `velocity image build` does."""
    if accelerator not in BASES:
        raise UserError(f"unknown accelerator {accelerator}", "--accelerator", f"one of {', '.join(BASES)}")
    if pip_config is not None and not Path(pip_config).is_file():
        raise UserError("no such file", f"--pip-config {pip_config}", "give a pip.conf; pip config debug names yours")
    tool, checkout = find_tool(tool), find_checkout()
    local = tag or f"velocity:{accelerator}"
    config = None if pip_config is None else str(Path(pip_config).resolve())
    build = Build(accelerator, local, __version__, _revision(checkout), config, options)
    command = build_command(tool, build)
    say(shell(command))
    _run(command, folder=checkout)
    _remember("built", {"tag": local, "tool": tool, "accelerator": accelerator})
    return local


def push_image(
    to: str, *, tag: str | None = None, tool: str | None = None, options: Sequence[str] = (), ecr: Any = None
) -> str:
    """The image is in the registry; its name there with its digest, which jobs use. What `velocity image push` does.

    Without a `tag` it is the one that was built last. `ecr`: AWS's client, made here if left out.
    """
    name, wanted = split_name(to)
    built = _remembered("built")
    local = tag or built.get("tag")
    if local is None:
        raise UserError("no image was built from here", str(RECORD), "velocity image build, or name one with --tag")
    tool = find_tool(tool or built.get("tool"))
    accelerator = built.get("accelerator", "") if local == built.get("tag") else ""
    content = _run(id_command(tool, local), quiet=True).strip().removeprefix("sha256:")[:12]
    remote = wanted or f"{accelerator or 'image'}-{content}"
    registry, _, repository = name.partition("/")
    found = ECR.fullmatch(registry)
    digest = None
    if found is not None:
        from velocity.launch import ecr as amazon

        client = ecr or amazon.client(found["region"])
        amazon.ensure_repository(client, repository)
        digest = amazon.digest_of(client, repository, remote)
        if digest is None:
            password = amazon.password(client)
            _run(login_command(tool, registry), given=password, quiet=True)
    if digest is None:
        digest = _push(tool, local, f"{name}:{remote}", options)
    pushed = Pushed(f"{name}@{digest}", accelerator)
    _remember("pushed", asdict(pushed))
    return pushed.image


def pinned_image() -> Pushed | None:
    """What was pushed last from this folder: the image of a job that names none; None where nothing was."""
    found = _remembered("pushed")
    return Pushed(**found) if found else None


def split_name(to: str) -> tuple[str, str | None]:
    """The image's name, with its registry, and its tag; UserError where it is no name."""
    name, colon, tag = to.rpartition(":")
    if "/" in tag:  # the colon stands before a port
        name, colon, tag = to, "", ""
    if not NAME.fullmatch(name) or (colon and not TAG.fullmatch(tag)):
        example = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/velocity, or registry.example.org/team/velocity"
        raise UserError(f"{to} is no name of an image in a registry", "--to", f"e.g. {example}")
    return name, tag or None


def _push(tool: str, local: str, to: str, options: Sequence[str]) -> str:
    """It was pushed; its digest."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "digest")
        *before, last = push_commands(tool, local, to, str(file), options)
        for command in before:
            say(shell(command))
            _run(command)
        if tool != "docker":
            say(shell(last))
            _run(last)
            return file.read_text(encoding="utf-8").strip()
        digests: list[str] = json.loads(_run(last, quiet=True))
    name = to.rpartition(":")[0]
    found = next((digest.partition("@")[2] for digest in digests if digest.startswith(f"{name}@")), None)
    if found is None:
        raise JobError(f"{tool} does not say under which digest it pushed", to, "push again")
    return found


def _run(command: Sequence[str], *, folder: Path | None = None, given: str | None = None, quiet: bool = False) -> str:
    """The command's output where it is `quiet`; otherwise that goes where ours goes. JobError where it fails."""
    try:
        done = subprocess.run(
            command, cwd=folder, input=given, stdin=subprocess.DEVNULL if given is None else None, check=False,
            stdout=subprocess.PIPE if quiet else None, stderr=subprocess.PIPE if quiet else None, text=True,
        )  # fmt: skip
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not installed", "--tool", f"install one of {', '.join(TOOLS)}") from None
    if done.returncode:
        said = [line for line in (done.stderr or "").splitlines() if line.strip()]
        what = said[-1] if said else f"{command[0]} ended with {done.returncode}; its lines above say why"
        raise JobError(what, shell(command[:2]))
    return done.stdout or ""


def _revision(checkout: Path) -> str:
    """The commit of the checkout; empty where git does not know one."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=False
        ).stdout
    except FileNotFoundError:
        return ""
    return found.strip()


def _remembered(what: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8")).get(what, {})
    except FileNotFoundError:
        return {}
    except ValueError:
        raise UserError("not valid JSON", str(RECORD), "remove it, and push the image again") from None
    return found


def _remember(what: str, facts: Mapping[str, Any]) -> None:
    known = {name: _remembered(name) for name in ("built", "pushed")} | {what: dict(facts)}
    write_atomically(RECORD, json.dumps({name: one for name, one in known.items() if one}, indent=1) + "\n")
