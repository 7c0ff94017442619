"""Secrets in a text: what kinds it holds, never what they are. It knows no file and no environment.

Detectors of high precision alone: a row that is left out for a false alarm is lost. So no entropy and no keywords, and
what stands where a password belongs has to look like one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any

from velocity.secrets import shaped_in

SHORTEST, FEWEST = 8, 6  # characters of a password, and different ones
# Each with what stands in every text, in lower case, in which it could find something: most texts have none of it.
_DETECTORS = {
    "an AWS key": ("aws.AWSKeyDetector", ("a3t", "abia", "acca", "akia", "asia", "aws")),
    "an Azure storage key": ("azure_storage_key.AzureStorageKeyDetector", ("accountkey=",)),
    "a GitHub token": ("github_token.GitHubTokenDetector", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_")),
    "a GitLab token": ("gitlab_token.GitLabTokenDetector", ("gl", "gr1348941")),
    "a JSON web token": ("jwt.JwtTokenDetector", ("eyj",)),
    "a Mailchimp key": ("mailchimp.MailchimpDetector", ("-us",)),
    "an npm token": ("npm.NpmDetector", ("_authtoken",)),
    "an OpenAI key": ("openai.OpenAIDetector", ("t3blbkfj",)),
    "a PyPI token": ("pypi_token.PypiTokenDetector", ("pypi-",)),
    "a SendGrid key": ("sendgrid.SendGridDetector", ("sg.",)),
    "a Slack token": ("slack.SlackDetector", ("xox", "hooks.slack")),
    "a Square secret": ("square_oauth.SquareOAuthDetector", ("sq0csp-",)),
    "a Stripe key": ("stripe.StripeDetector", ("k_live_",)),
    "a private key": ("private_key.PrivateKeyDetector", ("private key", "putty-user-key")),
}
_BODY = re.compile(r"(?:[A-Za-z0-9+/=]{16,}(?:\\n|\s)*){3,}")  # base64 behind the head, also as JSON writes line ends
_REACH = 600  # characters behind the head in which so much of it stands: PGP and PuTTY put a few lines before


@cache
def load_detectors() -> dict[str, Any]:
    """detect-secrets' detector of each kind; loaded once, before processes fork."""
    made = {}
    for kind, (name, _) in _DETECTORS.items():
        module, _, detector = name.partition(".")
        made[kind] = getattr(import_module(f"detect_secrets.plugins.{module}"), detector)()
    return made


def secrets_in(text: str) -> list[str]:
    """The kinds of secrets in the text, each once."""
    found = list(_detected(text))
    return list(dict.fromkeys([*found, *_shaped(text, known=bool(found))]))


def _detected(text: str) -> Iterator[str]:
    low = text.lower()
    for kind, (_, hints) in _DETECTORS.items():
        if any(hint in low for hint in hints) and _detects(load_detectors()[kind], kind, text):
            yield kind


def _detects(detector: Any, kind: str, text: str) -> bool:
    matches = (found for shape in detector.denylist for found in shape.finditer(text))
    if kind == "a private key":
        return any(_BODY.search(text, head.end(), head.end() + _REACH) for head in matches)
    valid = getattr(detector, "is_formally_valid", None)  # of web tokens
    return any(_is_key(found) and (valid is None or valid(found[0])) for found in matches)


def _shaped(text: str, *, known: bool) -> Iterator[str]:
    """By the shapes that `velocity.secrets` masks; a token has no second name where it is `known` by a better one."""
    for words, found in shaped_in(text):
        if words == "a token":
            if not known:
                yield "an AWS key" if found.startswith(("AKIA", "ASIA")) else words
        elif words != "a private key" and _telling(found.rpartition(":")[2]):
            yield words


def _is_key(found: re.Match[str]) -> bool:
    """True where it is no part of a longer word: AWS's shape stands in base64 and in sequences of DNA."""
    text, (start, end) = found.string, found.span()
    begins = not text[max(start - 1, 0) : start].isalnum()
    ends = not (text[end - 1].isalnum() and text[end : end + 1].isalnum())
    return begins and ends and _telling(found[0])


def _telling(found: str) -> bool:
    """True for letters and digits in a mixture that nobody writes for an example: not `password`, `xxxxxxxx`, `...`."""
    kinds = (any(one.isalpha() for one in found), any(one.isdigit() for one in found))
    return len(found) >= SHORTEST and all(kinds) and len(set(found)) >= FEWEST
