"""What the process of a rank runs first: it imports the job's module, whichever that is, and calls its `main`.

`python -m velocity.distributed.begin MODULE ARGUMENT...` under torchrun.
"""

from __future__ import annotations

import sys
from importlib import import_module

from velocity.garbage import importing


def main(module: str, *arguments: str) -> int:
    """The exit status of the module's `main`."""
    with importing():
        begun = import_module(module)
    return int(begun.main(*arguments))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
