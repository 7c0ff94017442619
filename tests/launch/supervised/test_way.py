"""What a supervisor reads of a way to hosts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from velocity.config.launch import LocalConfig
from velocity.config.ssh import SshConfig
from velocity.launch.supervised.way import Host, rendered, settings


def test_each_host_stands_with_its_command_and_its_order_beside_the_files_that_all_are_sent():
    [(name, text)] = rendered([Host("a", ["ssh", "a"], {"folder": "."})], ["1-sft.yaml"]).items()
    assert name == "nodes.json"
    node = {"host": "a", "command": ["ssh", "a"], "order": {"folder": "."}}
    assert json.loads(text) == {"files": ["1-sft.yaml"], "nodes": [node]}


@pytest.mark.parametrize(
    ("launch", "more", "expected"),
    [
        (LocalConfig(), {}, {"kind": "local"}),
        (LocalConfig(processes=4, max_restarts=1), {}, {"kind": "local", "processes": 4, "max_restarts": 1}),
        (SshConfig(hosts=("a",), config="x"), {"hosts": ["b"]}, {"kind": "ssh", "hosts": ["b"]}),
    ],
)
def test_of_the_launch_section_what_every_target_has_is_sent_and_what_else_is_named(
    launch: Any, more: dict[str, Any], expected: dict[str, Any]
):
    key, _, value = settings(launch, **more).partition("=")
    assert (key, json.loads(value)) == ("launch", expected)
