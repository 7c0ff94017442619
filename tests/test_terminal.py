"""A log gets whole lines, now and then; a terminal one line that changes."""

from __future__ import annotations

import pytest

from velocity import terminal
from velocity.terminal import progress_line, say


def test_a_log_has_whole_lines_without_escapes(capsys: pytest.CaptureFixture[str]):
    say("done")
    assert capsys.readouterr().err == "done\n"


def test_a_log_hears_of_progress_only_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    clock = iter([0.0, 3.0, 10.0, 10.0, 12.0, 20.0, 20.0])  # at its making; then, at each call, once or twice
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    report = progress_line()
    for text in ("after 3 s", "after 10 s", "after 12 s", "after 20 s"):
        report(text)
    assert capsys.readouterr().err == "after 10 s\nafter 20 s\n"


def test_a_terminal_has_one_line_that_changes_and_a_message_takes_its_place(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    report = progress_line()
    report("1 record")
    report("2 records")
    say("done")
    clear = terminal.CLEAR
    assert capsys.readouterr().err == f"{clear}1 record{clear}2 records{clear}done\n"
