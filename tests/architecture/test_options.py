"""The options of a job file are frozen: adding, renaming or dropping one is a change of its own, seen in review."""

from __future__ import annotations

from pathlib import Path

from velocity.config.load import option_names

FROZEN = Path(__file__).with_name("options.txt")
UPDATE = 'python -c "from velocity.config.load import option_names; print(*sorted(option_names()), sep=chr(10))"'


def test_the_options_of_a_job_file_are_the_frozen_ones():
    frozen, now = set(FROZEN.read_text("utf-8").split()), set(option_names())
    assert now == frozen, (
        f"new options: {sorted(now - frozen)}; gone: {sorted(frozen - now)}. Each new one needs a line in the guides "
        f"and one in CHANGELOG.md; each one gone breaks someone's job file. If that is meant:\n"
        f"  {UPDATE} > tests/architecture/{FROZEN.name}"
    )


def test_the_frozen_options_are_sorted_and_unique():
    frozen = FROZEN.read_text("utf-8").split()
    assert frozen == sorted(set(frozen))


def test_no_option_is_listed_twice():
    names = option_names()
    assert len(names) == len(set(names)), sorted(name for name in set(names) if names.count(name) > 1)
