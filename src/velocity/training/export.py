"""The tuned model of a run as a plain Hugging Face folder, for whoever comes after: other tools, or the next job."""

from __future__ import annotations

import shutil
from pathlib import Path

from velocity.config.load import read_resolved
from velocity.config.resolved import is_resolved
from velocity.data.tokenizer import load_tokenizer, turn_ends
from velocity.errors import UserError
from velocity.files import whole_folder
from velocity.models.locate import is_adapter
from velocity.runs.folder import RunFolder
from velocity.terminal import say


def export_model(path: Path, folder: Path) -> None:
    """`folder` holds the run's model, an adapter merged into it; it appears whole. `path` may be an adapter itself.

    UserError where there is no model yet, or where the folder is taken.
    """
    run = RunFolder(path)
    is_run = is_resolved(run.job)
    source = run.model if is_run else path
    if is_run and not source.is_dir():
        raise UserError("the run is not finished: it has no model yet", str(path), f"velocity run {run.job}")
    if not is_run and not is_adapter(source):
        raise UserError("neither a run folder nor an adapter", str(path), "give the output folder of a job")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError("the folder to export to is not empty", str(folder), "name a new one")
    if is_adapter(source):
        from velocity.models.merge import merge
        from velocity.models.quiet import quieten

        quieten()
        remote_code = is_run and read_resolved(run.job).model.trust_remote_code
        tokenizer = load_tokenizer(source, None, remote_code=remote_code)
        merge(source, folder, tokenizer, turn_ends=turn_ends(tokenizer), trust_remote_code=remote_code)
        return
    with whole_folder(folder) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)


def merge_ahead(model: str) -> None:
    """A finished run that trained an adapter has its merged model beside it, as a job that starts from it needs."""
    run = RunFolder(model)
    if is_resolved(run.job) and is_adapter(run.model):
        with run.owned():
            if not run.merged.is_dir():
                say(f"merging the adapter of {model} into its model …")
                export_model(run.path, run.merged)
