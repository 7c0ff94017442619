"""What a request has to know of a type of machine. It knows no prices and no GPUs: see planner/machines.py."""

from __future__ import annotations

import re

# Disks of their own: none is provisioned for them, and none can be given a key.
_NVME = re.compile(
    r"ml\.(g4dn|g5|g6|g6e|gr6|g7|g7e|p3dn|p4d|p4de|p5|p5e|p5en|p6[a-z]*-[a-z0-9]+|trn\d[a-z]*|[cmr]\d[a-z]*d[a-z]*|i\d[a-z]*)\."
)


def has_nvme(instance: str) -> bool:
    """True for a type with disks of its own."""
    return _NVME.match(instance) is not None
