"""A secret is recognised by its variable's name, by its place in an address or by its shape; all else stays."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from urllib.parse import quote

import pytest

from velocity.secrets import MASK, found_in, is_secret_name, scrub, shaped_in

TOKEN = 'Zq7/x+"9\\kü=R2vb'  # with all that JSON, Python and addresses write otherwise


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "WANDB_API_KEY", "MY_PASSWORD",
        "PGPASSWORD", "GITHUBTOKEN", "KEY", "api_key", "apikey", "AZURE_STORAGE_CONNECTION_STRING", "MYSQL_PWD",
        "GOOGLE_CREDENTIALS", "SECRET_SAUCE", "FSSPEC_S3_SECRET", "AZURE_STORAGE_SAS_TOKEN", "Authorization",
    ],
)  # fmt: skip
def test_a_variable_with_such_a_name_holds_a_secret(name: str):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "TOKENIZERS_PARALLELISM", "KEYBOARD", "AWS_REGION", "AWS_PROFILE", "AWS_ENDPOINT_URL", "PATH", "HOME",
        "keep", "MONKEY", "SECRETARY", "pattern", "batch_sequences", "path",
    ],
)  # fmt: skip
def test_a_variable_with_another_name_holds_none(name: str):
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    "write", [str, json.dumps, lambda text: json.dumps(text, ensure_ascii=False), repr, quote, lambda t: quote(t, "")]
)
def test_a_secret_of_the_environment_is_taken_out_however_it_is_written(monkeypatch: pytest.MonkeyPatch, write):
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    scrubbed = scrub(f"before {write(TOKEN)} after")
    assert re.fullmatch(r"before ['\"]?\*\*\*['\"]? after", scrubbed), scrubbed
    assert found_in(f"before {write(TOKEN)} after") == "the value of the environment variable MY_TOKEN"


def test_a_secret_in_json_leaves_json(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    assert json.loads(scrub(json.dumps({"a": [f"x {TOKEN} y", 1]}))) == {"a": [f"x {MASK} y", 1]}


def test_of_two_secrets_of_which_one_begins_with_the_other_nothing_is_left(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("A_TOKEN", "begins3with")
    monkeypatch.setenv("B_TOKEN", "begins3with-and-goes-on")
    assert scrub("begins3with-and-goes-on begins3with") == f"{MASK} {MASK}"


@pytest.mark.parametrize("value", ["short7!", "123456789", "1.5e-10", "Password", "aaaaaaaaaa", "localhost"])
def test_a_value_that_stands_in_many_texts_is_no_secret(monkeypatch: pytest.MonkeyPatch, value: str):
    monkeypatch.setenv("MY_KEY", value)
    assert scrub(f"it is {value}") == f"it is {value}"
    assert found_in(value) is None


def test_the_path_of_a_file_is_no_secret_and_a_secret_that_looks_like_one_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("SSL_KEY", str(tmp_path))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "/aB3dE5/gH7jK9mN")
    assert scrub(f"{tmp_path}/x /aB3dE5/gH7jK9mN") == f"{tmp_path}/x {MASK}"


def test_a_secret_that_is_a_word_is_none_inside_a_longer_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_KEY", "sequence")
    assert scrub('"sequence_length": 1, sequence') == f'"sequence_length": 1, {MASK}'


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("s3://user:pw@host/a", "s3://***@host/a"),
        ("http://hunter2@host:80/a?b", "http://***@host:80/a?b"),
        ("https://u:p@ss@host/", "https://***@host/"),
        ("403, url='https://b.s3/x?X-Amz-Date=1&X-Amz-Signature=f00&a=b'", "403, url='https://b.s3/x?X-Amz-Date=1&X-Amz-Signature=***&a=b'"),
        (
            "url: /x?X-Amz-Security-Token=a%2Fb&X-Amz-Credential=AK/1 (Caused by)",
            "url: /x?X-Amz-Security-Token=***&X-Amz-Credential=*** (Caused by)",
        ),
        ("https://a.blob.net/c?sv=2024&sig=a%2B%3D", "https://a.blob.net/c?sv=2024&sig=***"),
        ("https://h/?access_token=1&token=2&api_key=3&password=4", "https://h/?access_token=***&token=***&api_key=***&password=***"),
        ("https://h/?key=AIzaSyA-1234567890", "https://h/?key=***"),
        ("{'Authorization': 'Bearer abcdefgh.ijklmnop'}", "{'Authorization': 'Bearer ***'}"),
        ("log in with hf_" + "aB1" * 12, "log in with ***"),
        ("ASIA" + "A1B2" * 4 + " github_pat_" + "x_1" * 20, "*** ***"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMII\nE=\n-----END RSA PRIVATE KEY-----\nbehind", "***\nbehind"),
    ],
)  # fmt: skip
def test_what_has_the_place_or_the_shape_of_a_secret_is_taken_out(text: str, scrubbed: str):
    assert scrub(text) == scrubbed
    assert scrub(scrubbed) == scrubbed
    assert found_in(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/a@b/c?versionId=1", "abfs://container@account.dfs.core.windows.net/a", "ssh://git@host/a",
        "https://host/a?key=name&page=2&tokens=5", "me@host", "see https://host/a, or write to b@c", "hf_hub_download",
        "task-classification-of-sentences-in-many-words", "{{ prompt }}?", "the bearer of bad news",
        "data.train=[a, b] optimizer.learning_rate=1e-5", "sha256 " + "0123456789abcdef" * 4,
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(text: str):
    assert scrub(text) == text
    assert found_in(text) is None


def test_the_password_of_an_address_in_the_environment_is_taken_out_by_itself(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DATABASE_URL", "postgres://me:s3cr3t-pw@host/db")
    monkeypatch.setenv(
        "FSSPEC_HTTPS", json.dumps({"url": "not-secret", "headers": {"Authorization": "Basic dXNlcjpwdw=="}})
    )
    assert scrub("s3cr3t-pw not-secret Basic dXNlcjpwdw==") == f"{MASK} not-secret {MASK}"


def test_a_variable_may_be_taken_away_while_the_environment_is_looked_through(monkeypatch: pytest.MonkeyPatch):
    def meanwhile(path: str) -> bool:
        monkeypatch.delenv("TAKEN_AWAY", raising=False)  # as another thread may: a library, or pytest between two tests
        return False

    monkeypatch.setenv("MY_TOKEN", TOKEN)  # with a slash: whether it is a path is looked up
    monkeypatch.setenv("TAKEN_AWAY", "x")
    monkeypatch.setattr(os.path, "exists", meanwhile)
    assert scrub(TOKEN) == MASK
    assert found_in(TOKEN) == "the value of the environment variable MY_TOKEN"


def test_settings_that_are_no_json_hold_no_secret(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FSSPEC_HTTPS", "{torn")
    assert scrub("{torn") == "{torn"


def test_a_long_text_is_scrubbed_in_little_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    text = "".join(
        json.dumps({"step": i, "loss": 1.5, "grad_norm": 0.25, "seconds": 0.1}) + "\n" for i in range(30_000)
    )
    started = time.process_time()
    assert scrub(text) == text
    assert time.process_time() - started < len(text) / 1e6, "a second for a megabyte; 0.06 were measured"


def test_shapes_of_secrets_are_told_with_what_they_hide_whatever_the_environment_holds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_TOKEN", "correct-horse-battery")
    token = "hf_" + "a1B2" * 8
    text = f"get https://me:pa55word@host/x?sig=abc with {token}, correct-horse-battery"
    assert list(shaped_in(text)) == [
        ("a user and password in an address", "me:pa55word"),
        ("credentials in an address", "abc"),
        ("a token", token),
    ]
