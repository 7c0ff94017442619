"""The tokenizer of a model folder, with the chat template a job asks for, and what identifies both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from velocity.data.fingerprint import digest, folder_hash
from velocity.errors import UserError

FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab*",
    "merges.txt",
    "*.model",
)


def load_tokenizer(folder: Path, template: str | None = None, *, remote_code: bool = False) -> Any:
    """The folder's tokenizer; `template` is the path of a Jinja file that replaces its chat template."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=remote_code)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the model has no tokenizer that loads: {reason}", str(folder), "is the folder whole?"
        ) from None
    if template is not None:
        tokenizer.chat_template = _read_template(template)
    return tokenizer


def tokenizer_hash(folder: Path, template: str | None, cache: Path) -> str:
    """Changes whenever a token or a rendered chat could."""
    files = {file for pattern in FILES for file in folder.glob(pattern) if file.is_file()}
    return digest([folder_hash(files, cache), _read_template(template) if template else None])


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the chat template: {error}", "data.chat_template", "give a Jinja file") from None
