"""What all programs share."""

import pytest

from common import UserError, lock


def test_one_program_at_a_time(tmp_path):
    with lock(tmp_path, "busy"), pytest.raises(UserError, match="busy"), lock(tmp_path, "busy"):
        pass
    with lock(tmp_path, "busy"):
        pass
