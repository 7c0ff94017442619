"""What libraries print of themselves is kept from the user: progress of loading, advice, missing options."""

from __future__ import annotations

import logging
import warnings

import transformers


def quieten() -> None:
    """transformers, peft and bitsandbytes say nothing but errors."""
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it asks for a package that it does without
