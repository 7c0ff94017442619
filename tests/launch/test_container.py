"""The container image: commands, names, the Dockerfile, a registry; and one image that is really built and run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import velocity
from tests.making import chat, tiny_model_folder, write_job, write_jsonl
from velocity.errors import JobError, UserError
from velocity.launch import container, ecr
from velocity.launch.container import Build, build_command, find_tool, login_command, pinned_image, push_image
from velocity.launch.launcher import shell

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden" / "image-commands.txt"
ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/velocity"
SECRET = "hf_planted0123456789planted0123456789"


def commands() -> str:
    """What each tool is run with, a command a line."""
    cpu = Build("cpu", "velocity:cpu", "0.1.0", "1a2b3c")
    cuda = Build("cuda", "velocity:cuda", "0.1.0", "1a2b3c", "/home/me/pip.conf", ("--platform=linux/amd64",))
    made = []
    for tool in container.TOOLS:
        made += [build_command(tool, cpu), build_command(tool, cuda), container.id_command(tool, "velocity:cuda")]
        made += [login_command(tool, ECR.partition("/")[0])]
        made += container.push_commands(tool, "velocity:cuda", f"{ECR}:cuda-012345", "/tmp/digest", ["--quiet"])
    return "".join(f"{shell(command)}\n" for command in made)


def test_the_commands_are_the_kept_ones():
    assert commands() == GOLDEN.read_text("utf-8"), "if meant: python -m tests.launch.test_container"


def test_hadolint_finds_nothing():
    tool = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([tool, ROOT / "docker" / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_image_has_the_versions_that_the_tests_were_made_with():
    kept = dict(re.findall(r"^(torch|deepspeed)==([\w.]+)", (ROOT / "constraints.txt").read_text("utf-8"), re.M))
    text = (ROOT / "docker" / "Dockerfile").read_text("utf-8")
    assert {name.lower(): value for name, value in re.findall(r"^ARG (TORCH|DEEPSPEED)=(.+)$", text, re.M)} == kept


def test_every_extra_that_the_image_has_is_one():
    text = (ROOT / "docker" / "Dockerfile").read_text("utf-8")
    extras = re.search(r"^ARG EXTRAS=(.+)$", text, re.M)
    assert extras
    requirements = [sys.executable, ROOT / "docker" / "requirements.py", ROOT / "pyproject.toml", extras[1]]
    done = subprocess.run(requirements, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {"s3fs", "torch"} <= {re.split(r"[<>=;]", line)[0] for line in done.stdout.splitlines()}


def test_the_build_sees_of_a_checkout_what_it_needs_and_nothing_else():
    rules = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if not line.startswith("#")]
    seen = [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
    assert rules[0] == "*"
    assert {path.split("/")[0] for path in seen} == {"LICENSE", "README.md", "docker", "pyproject.toml", "src"}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "docker" / "Dockerfile").read_text("utf-8"), re.M)
    assert {path for line in copied for path in line.split()} <= set(seen)


def test_the_compiler_takes_flags_of_the_building_machine_for_those_of_the_image(tmp_path: Path):
    shown: list[Any] = [
        "bash",
        "-c",
        'exec() { echo "$@"; }; export -f exec; source "$0" "$@"',
        ROOT / "docker" / "portable-cxx",
    ]
    flags = ["-march=native", "-D__AVX512__", "-D__SCALAR__", "-O3", "a b.cpp"]
    environment = {**os.environ, "CPU_ARCH": "x86-64-v3"}
    done = subprocess.run([*shown, *flags], capture_output=True, text=True, env=environment, check=True)
    if os.uname().machine == "x86_64":
        assert done.stdout == "g++ -march=x86-64-v3 -D__AVX256__ -D__AVX256__ -O3 a b.cpp\n"
    done = subprocess.run([*shown, "x.c"], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "gcc x.c\n"


# ---- tools, names


def fake(folder: Path, name: str, script: str) -> Path:
    """A program of that name; its arguments go to `folder`/said."""
    program = folder / "bin" / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\necho "{name} $*" >> {folder}/said\n{script}\n')
    program.chmod(0o755)
    return program


@pytest.fixture
def here(tmp_path: Path, monkeypatch) -> Path:
    """The current folder, with no tool on the path but those that a test makes, and a shell's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setattr(container, "TOOLS", ("docker", "podman"))
    return tmp_path


def test_the_first_tool_that_is_installed_is_taken(here: Path):
    with pytest.raises(UserError, match="none of docker, podman is installed"):
        find_tool()
    fake(here, "podman", "")
    assert find_tool() == "podman"
    fake(here, "docker", "")
    assert find_tool() == "docker"
    assert find_tool("podman") == "podman"
    with pytest.raises(UserError, match="unknown tool rocket"):
        find_tool("rocket")


def test_a_build_outside_of_a_checkout_is_refused(here: Path, monkeypatch):
    fake(here, "docker", "")
    monkeypatch.setattr(container, "here", str(here / "lib" / "python" / "velocity" / "__init__.py"))
    with pytest.raises(UserError, match=r"there is no docker/Dockerfile here"):
        container.build_image()


def test_a_build_that_fails_says_so(here: Path):
    fake(here, "docker", "exit 3")
    with pytest.raises(JobError, match="docker ended with 3"):
        container.build_image("cpu")
    assert pinned_image() is None


@pytest.mark.parametrize("name", ["velocity", "a/b/", "https://a/b", "host/Name", "host/name:a b", ECR + ":"])
def test_what_is_no_name_of_an_image_is_refused(name: str):
    with pytest.raises(UserError, match="no name of an image"):
        container.split_name(name)


def test_a_name_may_have_a_port_and_a_tag():
    assert container.split_name("localhost:5000/velocity") == ("localhost:5000/velocity", None)
    assert container.split_name("localhost:5000/a/velocity:1.2") == ("localhost:5000/a/velocity", "1.2")


def test_nothing_is_pushed_that_was_not_built(here: Path):
    fake(here, "docker", "")
    with pytest.raises(UserError, match="no image was built from here"):
        push_image("registry.example.org/velocity")


DOCKER = """
case "$1 $2" in
    "image inspect") case "$4" in
        *RepoDigests*) echo '["other.example.org/velocity@sha256:0", "'$REPOSITORY'@sha256:abc"]' ;;
        *) echo sha256:0123456789abcdef ;;
    esac ;;
    "login "*) read password; echo "read $password" >> said ;;
esac
"""


def test_a_pushed_image_is_pinned_by_its_digest(here: Path, monkeypatch):
    fake(here, "docker", DOCKER)
    monkeypatch.setenv("REPOSITORY", "registry.example.org/velocity")
    monkeypatch.setattr(container, "find_checkout", lambda: here)
    assert container.build_image("cpu") == "velocity:cpu"
    assert push_image("registry.example.org/velocity") == "registry.example.org/velocity@sha256:abc"
    pinned = pinned_image()
    assert pinned is not None and (pinned.image, pinned.accelerator) == (
        "registry.example.org/velocity@sha256:abc",
        "cpu",
    )
    # the tag follows from the content: the same content again is the same image, and other content another
    assert "docker push registry.example.org/velocity:cpu-0123456789ab" in (here / "said").read_text()


# ---- AWS's registry


@pytest.fixture
def amazon(monkeypatch) -> Iterator[Any]:
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing-of-velocity")
    with mock_aws():
        yield ecr.client("eu-west-1")


def test_a_repository_is_made_once_scans_and_keeps_its_tags(amazon):
    ecr.ensure_repository(amazon, "team/velocity")
    ecr.ensure_repository(amazon, "team/velocity")
    (made,) = amazon.describe_repositories()["repositories"]
    assert made["imageTagMutability"] == "IMMUTABLE"
    assert made["imageScanningConfiguration"] == {"scanOnPush": True}


def test_a_push_to_amazon_gives_the_password_to_nobody_but_the_tool(here: Path, amazon, monkeypatch):
    fake(here, "docker", DOCKER)
    monkeypatch.setenv("REPOSITORY", ECR)
    container._remember("built", {"tag": "velocity:cuda", "tool": "docker", "accelerator": "cuda"})
    assert push_image(ECR, ecr=amazon) == f"{ECR}@sha256:abc"
    said = (here / "said").read_text()
    password = ecr.password(amazon)
    registry = ECR.partition("/")[0]
    assert f"docker login --username AWS --password-stdin {registry}\nread {password}\n" in said
    assert all(password not in line for line in said.splitlines() if not line.startswith("read "))
    assert all(password not in path.read_text() for path in (here / ".velocity").rglob("*.json"))


def test_what_amazon_has_already_is_not_pushed_again(here: Path, amazon):
    fake(here, "docker", DOCKER)
    container._remember("built", {"tag": "velocity:cuda", "tool": "docker", "accelerator": "cuda"})
    ecr.ensure_repository(amazon, "team/velocity")
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    manifest = json.dumps({"schemaVersion": 2, "mediaType": kind, "config": {"digest": "sha256:1"}, "layers": []})
    amazon.put_image(repositoryName="team/velocity", imageManifest=manifest, imageTag="cuda-0123456789ab")
    (there,) = amazon.describe_images(repositoryName="team/velocity")["imageDetails"]
    assert push_image(ECR, ecr=amazon) == f"{ECR}@{there['imageDigest']}"
    assert "push" not in (here / "said").read_text()


def test_who_amazon_does_not_know_is_told_so(here: Path, monkeypatch):
    fake(here, "docker", DOCKER)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(here))
    with pytest.raises(UserError, match="AWS cannot be asked"):
        push_image(ECR, tag="velocity:cuda")


# ---- real tools


def why_no_builder() -> str | None:
    """Why no image can be built here; None where one can."""
    if os.geteuid() != 0:
        return "images are built by root here, without an engine"
    missing = [name for name in ("buildah", "mmdebstrap") if not shutil.which(name)]
    return f"building without an engine needs {', '.join(missing)}" if missing else None


@pytest.fixture
def builder(tmp_path: Path, monkeypatch) -> Iterator[Path]:
    """Buildah with a storage of its own, which is gone afterwards."""
    if why := why_no_builder():
        pytest.skip(why)
    settings = tmp_path / "storage.conf"
    folders = f'runroot = "{tmp_path}/runroot"\ngraphroot = "{tmp_path}/graphroot"\n'
    settings.write_text(f'[storage]\ndriver = "vfs"\n{folders}')
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(settings))
    monkeypatch.setenv("BUILDAH_ISOLATION", "chroot")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    subprocess.run(["buildah", "rm", "--all"], capture_output=True, check=False)
    shutil.rmtree(tmp_path / "graphroot", ignore_errors=True)
    shutil.rmtree(tmp_path / "runroot", ignore_errors=True)


def buildah(*arguments: object, **options: Any) -> str:
    """What it prints."""
    command = ["buildah", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.skipif(shutil.which("docker-registry") is None, reason="Debian's docker-registry is not installed")
def test_a_real_registry_has_the_image_under_the_digest_that_is_pinned(builder: Path):
    (builder / "a-file").write_text("some content")
    made = buildah("from", "scratch").strip()
    buildah("add", made, builder / "a-file", "/")
    buildah("commit", made, "localhost/velocity:cpu")
    settings = builder / "registry.yml"
    port = 20000 + os.getpid() % 20000
    place = f"storage: {{filesystem: {{rootdirectory: {builder}/registry}}}}"
    settings.write_text(f"version: 0.1\n{place}\nhttp: {{addr: '127.0.0.1:{port}'}}\n")
    with (builder / "registry.log").open("w") as log:
        server = subprocess.Popen(["docker-registry", "serve", settings], stdout=log, stderr=log)
    try:
        container._remember("built", {"tag": "localhost/velocity:cpu", "tool": "buildah", "accelerator": "cpu"})
        image = pushed_when_it_answers(f"127.0.0.1:{port}/team/velocity")
        assert re.fullmatch(rf"127\.0\.0\.1:{port}/team/velocity@sha256:[0-9a-f]{{64}}", image)
        there = buildah("pull", "--tls-verify=false", f"docker://{image}").strip()
        assert there == buildah("inspect", "--type", "image", "--format", "{{.FromImageID}}", "velocity:cpu").strip()
    finally:
        server.kill()
        server.wait()


def pushed_when_it_answers(to: str) -> str:
    """The pushed image's name, once the registry is up."""
    end = time.monotonic() + 20
    while True:
        try:
            return push_image(to, options=["--tls-verify=false"])
        except JobError:
            if time.monotonic() > end:
                raise
            time.sleep(0.3)


def checkout_with_secrets(folder: Path) -> Path:
    """A checkout as a user may have it: with a key, data and a remote beside what the image is made of."""
    names = (".dockerignore", "LICENSE", "README.md", "pyproject.toml", "docker", "src")
    folder.mkdir()
    for name in names:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    for name in (".env", ".git/config", "data/rows.jsonl", "docker/key.pem", "runs/sft/job.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"token = {SECRET}\n")
    return folder


def pip_settings(folder: Path) -> tuple[Path, list[str]]:
    """This machine's settings of pip as a file, with a secret in it, and what of its disk they need."""
    said = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    found = dict(re.findall(r"^(?::env:|global)\.([\w-]+)='(.*)'$", said.stdout, re.M))
    found.pop("constraint", None)
    lines = [f"{name} = {value}" for name, value in found.items()]
    file = folder / "pip.conf"
    file.write_text("\n".join(["[global]", f"# password: {SECRET}", *lines]) + "\n")
    places = {Path(part.removeprefix("file://")) for value in found.values() for part in value.split()}
    wanted = [place for place in sorted(places) if place.is_absolute() and place.exists()]
    roots = {place if place.is_dir() else place.parent for place in wanted}
    roots |= {place.parent for place in roots if place.name == "simple"} | {Path("/etc/ssl/certs")}
    return file, [f"--volume={place}:{place}:ro" for place in sorted(roots) if place.exists()]


def base_image(folder: Path) -> str:
    """A Debian for the image to be built on, made of packages.

    It has its certificates already: while the image is built, this machine's lie over them and cannot be written.
    """
    root = folder / "debian.tar"
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--include=ca-certificates", "bookworm", str(root)]
    subprocess.run(command, check=True, timeout=600)
    made = buildah("from", "scratch").strip()
    buildah("add", "--quiet", made, root, "/")
    buildah("commit", "--quiet", made, "localhost/debian")
    buildah("rm", made)
    root.unlink()
    return "localhost/debian"


def layers_holding(text: str, image: str, folder: Path) -> list[str]:
    """Files of the image, layers and settings, that hold the text."""
    buildah("push", "--quiet", "--disable-compression", image, f"dir:{folder}")
    found = [path.name for path in folder.iterdir() if text.encode() in path.read_bytes()]
    assert len(list(folder.iterdir())) > 3
    shutil.rmtree(folder)
    return found


@pytest.mark.slow
def test_the_image_is_built_trains_as_an_ordinary_user_and_holds_no_secret(builder: Path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    image = built_in(builder, monkeypatch)
    assert_no_secret(image, builder)
    assert_settings(image)
    assert_it_trains(image, builder)


def built_in(builder: Path, monkeypatch: Any) -> str:
    """The image of a checkout that holds secrets, built with settings of pip that hold one."""
    config, volumes = pip_settings(builder)
    options = ["--network=host", *volumes, f"--build-arg=BASE={base_image(builder)}", "--build-arg=MAX_JOBS=2"]
    monkeypatch.chdir(checkout_with_secrets(builder / "checkout"))
    return container.build_image("cpu", tool="buildah", pip_config=str(config), options=options)


def assert_no_secret(image: str, builder: Path) -> None:
    assert layers_holding(SECRET, image, builder / "layers") == []
    assert layers_holding("velocity", image, builder / "layers"), "nothing was searched"


def assert_settings(image: str) -> None:
    settings = json.loads(buildah("inspect", "--type", "image", image))["Docker"]["config"]
    assert not settings["Entrypoint"] and settings["Cmd"] == ["velocity", "--help"]
    assert settings["Labels"]["org.opencontainers.image.title"] == "Velocity"
    assert settings["Labels"]["org.opencontainers.image.version"] == velocity.__version__


def assert_it_trains(image: str, builder: Path) -> None:
    """An ordinary user trains with what was compiled before, on any machine."""
    work = builder / "work"
    tiny_model_folder(work / "model")
    write_jsonl(work / "train.jsonl", [chat("What is it?", f"It is number {n}.") for n in range(40)])
    adam = {"kind": "adamw", "learning_rate": 1e-3, "schedule": "constant", "warmup": 0}
    write_job(
        work / "job.yaml", model="model", output="run", optimizer=adam, launch={"processes": 2},
        data={"train": "train.jsonl", "cache": "cache"},
        strategy={"zero": 2, "offload": {"optimizer": "cpu"}, "precision": "fp32"},
    )  # fmt: skip
    for path in [work, *work.rglob("*")]:
        os.chown(path, 10001, 10001)
    made = buildah("from", image).strip()
    inside = ["run", "--user=10001:10001", "--env=HOME=/home/velocity", f"--volume={work}:/files"]
    inside += ["--workingdir=/files", made, "--"]
    assert "one YAML job file" in " ".join(buildah(*inside, "velocity", "--help").split())
    buildah(*inside, "velocity", "run", "job.yaml", timeout=600)
    steps = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == [1, 2]
    assert buildah(*inside, "sh", "-c", "ls -d ~/.cache/torch_extensions 2>/dev/null || true") == ""
    library = "/opt/velocity/lib/python3*/site-packages/deepspeed/ops/adam/cpu_adam_op*.so"
    count = "objdump -d %s | grep -c %s || true"
    assert int(buildah(*inside, "sh", "-c", count % (library, "zmm"))) == 0  # AVX-512's registers, and AVX2's
    assert int(buildah(*inside, "sh", "-c", count % (library, "ymm"))) > 0


if __name__ == "__main__":
    GOLDEN.write_text(commands(), "utf-8")
