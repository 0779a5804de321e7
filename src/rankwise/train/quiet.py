"""Other libraries' bars and notes, turned off: a run has one progress bar, and says itself what matters."""

import logging
import warnings

import datasets
import transformers


def quiet_libraries() -> None:
    """Called by commands, never by the library: in a user's program these switches are the user's."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("trl").setLevel(logging.ERROR)
    # trl still passes the old name, and says so on every start
    warnings.filterwarnings("ignore", message="`gradient_checkpointing", category=FutureWarning)
