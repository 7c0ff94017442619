"""Secrets of the environment and credentials in addresses: found in a text, and taken out of it. It knows no module.

What leaves Velocity as text passes `scrub` in two places: `files.write_atomically`, which every file about a run goes
through, and the streams of `terminal.keep_secrets`. Data and completions are the user's, and stay as they are.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from urllib.parse import quote, quote_plus

MASK = "***"
SHORTEST = 8  # what is shorter stands in too many texts by chance

_NAME = re.compile(
    r"(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|API_?KEY|ACCESS_?KEY|CONNECTION_STRING)S?(_|$)"
    r"|(^|[_-])(KEY|PWD|PAT|SAS|AUTHORIZATION)(_|$)",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"[-+.\d]+(e[-+]?\d+)?", re.IGNORECASE)
_WORDS = {"anonymous", "changeme", "development", "disabled", "localhost", "password", "production", "required"}
_QUERY = (
    r"x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)|awsaccesskeyid|signature|sig"
    r"|[\w-]*(?:token|secret|password|passwd|api[_-]?key)|key(?==[^\s&#\"']{16})"
)
# What a secret is recognised by without knowing it. A group named `kept` stays.
_SHAPES = {
    "a user and password in an address": re.compile(
        # abfs://container@account and s3://key@bucket name no secret, https://token@host does
        r"(?P<kept>\b(?:https?://(?=[^\s/?#\"'<>]*@)|[a-z][a-z0-9+.-]*://(?=[^\s/?#\"'<>@]*:[^\s/?#\"'<>]*@)))"
        r"[^\s/?#\"'<>]*(?=@)",
        re.IGNORECASE,
    ),
    "credentials in an address": re.compile(rf"(?P<kept>[?&;](?:{_QUERY})=)(?!\*\*\*)[^\s&;#\"'<>\\)]+", re.IGNORECASE),
    "an authorization": re.compile(r"(?P<kept>\bbearer\s+)[\w.~+/=-]{16,}", re.IGNORECASE),
    "a token": re.compile(  # of Hugging Face, AWS, GitHub, GitLab, OpenAI and Anthropic, Slack
        r"(?<![A-Za-z0-9])(?P<kept>)(?:hf_[A-Za-z0-9]{30,}|A[KS]IA[A-Z0-9]{16}(?![A-Za-z0-9])|gh[pousr]_[A-Za-z0-9]{36,}"
        r"|github_pat_\w{40,}|glpat-[\w-]{20,}|sk-[\w-]{32,}|xox[abprs]-[\w-]{20,})"
    ),
    "a private key": re.compile(
        r"(?P<kept>)-----BEGIN [A-Z ]*PRIVATE KEY-----.+?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL
    ),
}  # fmt: skip


def is_secret_name(name: str) -> bool:
    """True for the name of an environment variable, or of a key, that holds a secret: HF_TOKEN, api_key."""
    return _NAME.search(name) is not None


def scrub(text: str) -> str:
    """The text with `***` in place of every secret in it."""
    pattern = _pattern(tuple(_known()))
    if pattern is not None:
        text = pattern.sub(MASK, text)
    for shape in _SHAPES.values():
        text = shape.sub(rf"\g<kept>{MASK}", text)
    return text


def found_in(text: str) -> str | None:
    """What secret the text holds, in words that do not tell it; None where it holds none."""
    for value, name in _known().items():
        if (pattern := _pattern((value,))) and pattern.search(text):
            return f"the value of the environment variable {name}"
    return next((words for words, shape in _SHAPES.items() if shape.search(text)), None)


def shaped_in(text: str) -> Iterator[tuple[str, str]]:
    """What in the text has the shape of a secret, whatever the environment holds: what it is, and the secret."""
    for words, shape in _SHAPES.items():
        yield from ((words, found[0].removeprefix(found["kept"])) for found in shape.finditer(text))


def _known() -> dict[str, str]:
    """The secrets of the environment, each with the variable that holds it.

    Another thread may take a variable away meanwhile, after which `os.environ.items()` fails.
    """
    return {value: name for name in list(os.environ) for value in _secrets_of(name, os.environ.get(name, ""))}


def _secrets_of(name: str, held: str) -> Iterator[str]:
    if is_secret_name(name) and _may_be_secret(held.strip()):
        yield held.strip()
    address = re.search(r"://[^\s/?#@:]*:([^\s/?#]+)@", held)  # DATABASE_URL, HTTPS_PROXY: the password by itself, too
    if address and _may_be_secret(address[1]):
        yield address[1]
    if name.startswith("FSSPEC_") and held.startswith("{"):  # settings of a file system, as JSON
        try:
            yield from (value for value in _leaves(json.loads(held)) if _may_be_secret(value))
        except ValueError:
            return


def _leaves(settings: Mapping[str, object]) -> Iterator[str]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        elif isinstance(value, str) and is_secret_name(name):
            yield value


def _may_be_secret(value: str) -> bool:
    """False for what names no secret, or is part of too much text: a number, a word, the path of a file."""
    if len(value) < SHORTEST or value.lower() in _WORDS or _NUMBER.fullmatch(value) or len(set(value)) < 4:
        return False
    return not ("/" in value and os.path.exists(os.path.expanduser(value)))


@lru_cache(maxsize=256)
def _pattern(values: tuple[str, ...]) -> re.Pattern[str] | None:
    """What matches any of the values, also as JSON, Python and addresses write them; None where there is none."""
    spelt = {spelling: value for value in values for spelling in _spellings(value)}
    if not spelt:
        return None
    longest_first = sorted(spelt, key=len, reverse=True)
    return re.compile("|".join(map(_alone, longest_first)))


def _spellings(value: str) -> set[str]:
    written = {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1]}
    return {value, *written, quote(value), quote(value, safe=""), quote_plus(value)}


def _alone(value: str) -> str:
    """A secret that is a plain word is none inside a longer one: `sequence` in `sequence_length`."""
    escaped = re.escape(value)
    return rf"(?<!\w){escaped}(?!\w)" if value.isalpha() and value.islower() else escaped
