"""What a launch section of hosts can say."""

from __future__ import annotations

from typing import Any

import pytest

from velocity.config.ssh import SshConfig


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "needs either hosts or hostfile"),
        ({"hosts": ["a"], "hostfile": "x"}, "needs either hosts or hostfile"),
        ({"hostfile": "none"}, "hostfile cannot be read"),
        ({"hosts": ["a", "bob@a"]}, "the host a is named twice"),
        ({"hosts": ["-oProxyCommand=x"]}, "is no name of a host"),
        ({"hosts": ["a b"]}, "is no name of a host"),
        ({"hosts": ["a"], "port": 22}, "port"),
    ],
)
def test_what_is_no_list_of_hosts_is_refused(values: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        SshConfig.model_validate(values)
