"""The launcher of a target, by its name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from velocity.config.launch import TARGETS
from velocity.errors import UserError
from velocity.launch.build import build_launcher

METHODS = ("render", "check", "submit", "status", "logs", "cancel")


@pytest.mark.parametrize("kind", TARGETS)
def test_every_target_of_a_job_file_has_a_launcher_that_can_all(kind: str):
    launcher = build_launcher(kind)
    assert all(callable(getattr(launcher, method)) for method in METHODS)


def test_no_two_targets_have_the_same_launcher():
    made = [build_launcher(kind) for kind in TARGETS]
    assert len({(type(one), type(getattr(one, "way", None))) for one in made}) == len(TARGETS)


def test_what_is_no_target_is_refused():
    with pytest.raises(UserError, match="unknown target cloud"):
        build_launcher("cloud")


@pytest.mark.parametrize("kind", TARGETS)
def test_a_target_is_there_at_once_without_a_framework_or_a_clouds_library(kind: str):
    code = (
        f"import sys; from velocity.launch.build import build_launcher; build_launcher({kind!r}); print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "deepspeed", "datasets", "boto3", "botocore", "kubernetes"} & {*loaded}
