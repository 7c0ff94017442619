"""The tokenizer of a model folder, with the chat template a job asks for, and what identifies both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

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


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of all tokens that are no text, also of those without a role."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(tokenizer.all_special_ids) | added


def turn_ends(tokenizer: Any) -> list[int]:
    """The special token that the chat template puts behind an assistant's turn; empty where there is none."""
    if tokenizer.chat_template is None:
        return []
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except (jinja2.TemplateError, TypeError, ValueError):  # a template for other roles
        return []
    special = special_ids(tokenizer)
    return [token for token in tokenizer(text, add_special_tokens=False)["input_ids"] if token in special][-1:]


def tokenizer_hash(folder: Path, template: str | None, cache: Path) -> str:
    """Changes whenever a token or a rendered chat could."""
    files = {file for pattern in FILES for file in folder.glob(pattern) if file.is_file()}
    return digest([folder_hash(files, cache), _read_template(template) if template else None])


def _read_template(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the chat template: {error}", "data.chat_template", "give a Jinja file") from None
