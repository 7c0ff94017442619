"""Secrets are found by kind, and what only looks like one is not. Every key here is put together, and nobody's."""

from __future__ import annotations

import base64
import json

import pytest

from velocity.data.inspection.leaks import load_detectors, secrets_in

LETTERS = "aB3dE5gH7jK9mN1pQ2sT4vW6yZ8bC0fG"


def jwt() -> str:
    parts = ({"alg": "HS256", "typ": "JWT"}, {"sub": "1234567890", "name": "A"})
    coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*coded, LETTERS + LETTERS[:11]])


def pem(kind: str, line_end: str = "\n", before: str = "") -> str:
    body = line_end.join([LETTERS * 2] * 5)
    return f"-----BEGIN {kind}-----{line_end}{before}{body}{line_end}-----END {kind}-----"


SECRETS = {
    "AKIA" + "IOSFODNN7EXAMPLE": "an AWS key",
    "ASIA" + "QWERTZUIOPASDFGH": "an AWS key",
    f"aws_secret_access_key = '{LETTERS}abcd+/12'": "an AWS key",
    "ghp_" + LETTERS + "abcd": "a GitHub token",
    "github_pat_" + LETTERS + LETTERS: "a token",
    "hf_" + LETTERS: "a token",
    "glpat-" + LETTERS[:20]: "a GitLab token",
    "xoxb-" + "1234567890-1234567890123-" + LETTERS[:24]: "a Slack token",
    "sk_live_" + LETTERS[:24]: "a Stripe key",
    "SG." + LETTERS[:22] + "." + LETTERS + LETTERS[:11]: "a SendGrid key",
    "pypi-AgEIcHlwaS5vcmc" + LETTERS * 3: "a PyPI token",
    jwt(): "a JSON web token",
    pem("RSA PRIVATE KEY"): "a private key",
    pem("OPENSSH PRIVATE KEY"): "a private key",
    pem("RSA PRIVATE KEY", before="Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,0123456789AB\n\n"): "a private key",
    pem("PRIVATE KEY", "\\n"): "a private key",
    "https://deploy:" + "tr0ub4dor3x" + "@git.corp.example/repo": "a user and password in an address",
    "postgres://app:" + "s3cr3tPa55" + "@db/main": "a user and password in an address",
    "https://host/path?sig=" + LETTERS: "credentials in an address",
    "Authorization: Bearer " + LETTERS: "an authorization",
}  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS, ids=[f"{kind}-{i}" for i, kind in enumerate(SECRETS.values())])
def test_a_secret_in_a_text_is_found_by_its_kind_and_never_said(secret: str):
    text = f"The service is set up as follows.\n\n    {secret}\n\nThen it starts."
    assert secrets_in(text) == [SECRETS[secret]]
    assert secret not in str(secrets_in(text))


CLEAN = [
    "Never commit a private key: what begins with -----BEGIN RSA PRIVATE KEY----- belongs into a vault.",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKC...\n-----END RSA PRIVATE KEY-----",
    "Log in at https://user:password@host.example, or http://admin:admin@10.0.0.1/.",
    "GET /authenticate_login.cgi?username=...&password=... HTTP/1.1",
    "https://example.com/?api_key=YOUR_API_KEY&token=xxxxxxxxxxxx",
    "An access key begins with AKIA and has twenty characters; a token with ghp_ or xoxb-.",
    "The sequence is GATTACA" + "ACCATGGCATTACGGATTACAG" * 3,
    "a picture as base64: iVBORw0KGgo" + "AKIA" + "IOSFODNN7EXAMPLE" + "d29ybGQhIGhlbGxv",
    "commit 3f2b8c1d9e7a6b5c4d3e2f1a0b9c8d7e6f5a4b3c changes the checksum d41d8cd98f00b204e9800998ecf8427e",
    "Authorization: Bearer <token>",
    "password = 'hunter2'; secret = os.environ['SECRET']",
    "uuid 123e4567-e89b-12d3-a456-426614174000, base64 aGVsbG8gd29ybGQhIGhlbGxvIHdvcmxkIQ==",
    "ASIA and the Pacific; ASIAN; abia; AKIAxxxxxxxxxxxxxxxx",
    "s3://key@bucket/path and abfs://container@account.dfs.core.windows.net/",
]


@pytest.mark.parametrize("text", CLEAN)
def test_what_only_looks_like_one_is_no_alarm(text: str):
    assert secrets_in(text) == []


def test_a_key_behind_the_mention_of_one_is_found():
    assert secrets_in("It begins with BEGIN RSA PRIVATE KEY. " * 3 + "x " * 500 + pem("RSA PRIVATE KEY")) == [
        "a private key"
    ]


def test_all_kinds_of_a_text_are_told_once_each():
    text = " ".join([*("AKIA" + "IOSFODNN7EXAMPLE", "ghp_" + LETTERS + "abcd")] * 2)
    assert secrets_in(text) == ["an AWS key", "a GitHub token"]


def test_the_environment_makes_no_difference(monkeypatch: pytest.MonkeyPatch):
    """What a run leaves out is a function of the data: another machine has other secrets."""
    monkeypatch.setenv("MY_TOKEN", "correct-horse-battery")
    assert secrets_in("It is correct-horse-battery.") == []


def test_every_detector_is_one_of_the_library():
    assert all(type(one).__module__.startswith("detect_secrets.plugins.") for one in load_detectors().values())
