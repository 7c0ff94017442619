"""Says which of DeepSpeed's operators are not in the wheel that is installed, though they are named: exit status 1."""

from __future__ import annotations

import sys

from deepspeed.git_version_info import accelerator_name, installed_ops

accelerator, *wanted = sys.argv[1:]
missing = [name for name in wanted if not installed_ops.get(name)]
if accelerator_name != accelerator:
    sys.exit(f"DeepSpeed was built for {accelerator_name}, not for {accelerator}")
if missing:
    sys.exit(f"DeepSpeed was built without {', '.join(missing)}")
