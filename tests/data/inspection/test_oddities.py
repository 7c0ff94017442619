"""Texts that were decoded wrongly, and languages that few have."""

from __future__ import annotations

import pytest

from tests.making import TEXT
from velocity.data.inspection.oddities import encoding_fault, language_of, usual

GERMAN = (
    "Der Angreifer kann über ein nicht geprüftes Feld der Anfrage eigene Befehle in die Datenbank einschleusen und so "
    "Daten lesen, die ihm nicht gehören. Die Eingaben sind zu prüfen, bevor sie weitergegeben werden. "
)
ENGLISH = (
    "The product receives input from an upstream component, but it does not check that the input has the properties "
    "that are required to process the data safely and correctly. Attackers can read what does not belong to them. "
)
CODE = (
    "def build(folder: Path) -> dict[str, int]:\n    counts = {}\n    for path in sorted(folder.rglob('*.py')):\n"
    "        with path.open('rb') as stream:\n            counts[str(path)] = sum(1 for _ in stream)\n"
    "    return counts\n"
)


def test_a_text_decoded_with_the_wrong_encoding_is_found():
    wrong = "Über die Größe der Lücke".encode().decode("cp1252")
    assert "Ã" in wrong
    assert encoding_fault(f"Some text. {wrong}") == (
        "reads as if it had been decoded with the wrong encoding (é as Ã©)"
    )


def test_bytes_that_were_no_text_are_found():
    assert "U+FFFD" in str(encoding_fault(b"caf\xe9 au lait".decode(errors="replace")))


@pytest.mark.parametrize("character", ["\x00", "\x08", "\x81", "\x9d"])
def test_control_characters_are_found(character: str):
    assert encoding_fault(f"a{character}b") == f"holds the control character U+{ord(character):04X}"


@pytest.mark.parametrize(
    "text", [TEXT, GERMAN, ENGLISH, CODE, "naïve café, 日本語, 🙂, Ω ≈ 3 — “so”", "\x1b[31mred\x1b[0m\tand\r\nmore\f"]
)
def test_text_that_is_right_is_no_alarm(text: str):
    assert encoding_fault(text) is None


@pytest.mark.parametrize(("text", "language"), [(GERMAN, "de"), (ENGLISH, "en"), (ENGLISH[:150], ""), ("", "")])
def test_a_language_is_told_of_a_text_that_is_long_enough(text: str, language: str):
    assert language_of(text) == language


def test_code_is_in_english_or_in_no_language():
    assert language_of(CODE) in ("", "en")


@pytest.mark.parametrize("text", ["id,ts,src,dst\n" + "17,0.002,10.0.0.1,10.0.0.9\n" * 12, "kjh sdf qwe zxv bnm " * 12])
def test_what_is_no_language_has_none(text: str):
    assert language_of(text) == ""


@pytest.mark.parametrize(
    ("counts", "found"),
    [
        ({"en": 19, "de": 1}, ("en", 0.95)),
        ({"en": 18, "de": 2}, ("en", 0.9)),
        ({"en": 17, "de": 3}, None),  # a set of two languages
        ({"en": 9, "de": 0}, None),  # too few to say what is usual
        ({"en": 10, "": 90}, ("en", 1.0)),  # those without a language have no say
        ({}, None),
    ],
)
def test_a_set_has_the_language_of_nine_in_ten_of_its_texts(counts: dict[str, int], found: object):
    assert usual([language for language, count in counts.items() for _ in range(count)]) == found
