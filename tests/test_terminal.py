"""A log gets whole lines, now and then; a terminal one line that changes."""

from __future__ import annotations

import io
import logging
import sys
import traceback
from typing import cast

import pytest

from velocity import terminal
from velocity.terminal import keep_secrets, progress_line, say


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


def test_whoever_prints_prints_no_secret(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_PASSWORD", "not-to-be-seen-7")
    keep_secrets()
    keep_secrets()  # once is enough
    say("we: not-to-be-seen-7")
    print("others:", "not-to-be-seen-7")
    sys.stderr.writelines(["lines: ", "not-to-be-seen-7\n"])
    try:
        raise RuntimeError("cannot reach s3://me:pw@host/ with not-to-be-seen-7")
    except RuntimeError:
        traceback.print_exc()
    seen = capsys.readouterr()
    assert seen.out == "others: ***\n"
    assert seen.err.startswith("we: ***\nlines: ***\nTraceback")
    assert seen.err.endswith("RuntimeError: cannot reach s3://***@host/ with ***\n")


def test_the_log_of_a_library_that_was_imported_before_holds_no_secret(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_PASSWORD", "not-to-be-seen-7")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    before, log = cast(io.StringIO, sys.stderr), logging.getLogger("imported-before")
    handler = logging.StreamHandler()
    log.addHandler(handler)
    try:
        keep_secrets()
        log.error("it is not-to-be-seen-7")
    finally:
        log.removeHandler(handler)
    assert before.getvalue() == "it is ***\n"


def test_a_stream_without_secrets_is_a_stream_like_any_other(capsys: pytest.CaptureFixture[str]):
    keep_secrets()
    assert sys.stdout.write("four") == 4
    assert not sys.stdout.isatty()
    assert capsys.readouterr().out == "four"
