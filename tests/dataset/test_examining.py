"""Each image of a dataset is looked at once."""

import pytest
from PIL import Image

from dataset import examining
from dataset.examining import examine, find_unreadable


def test_a_file_is_read_again_only_if_it_has_changed(tmp_path, monkeypatch):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.new("L", (4, 4)).save(good)
    bad.write_text("text")
    examined, unreadable = examine([good, bad])
    assert ([each.path for each in examined], unreadable) == ([good], {bad: "not an image"})
    opened = []
    monkeypatch.setattr(Image, "open", lambda path, original=Image.open, **how: opened.append(path) or original(path))
    assert examine([good, bad])[1] == find_unreadable([good, bad]) == {bad: "not an image"}
    assert opened == []
    good.write_bytes(b"")
    Image.new("L", (5, 4)).save(bad)
    assert find_unreadable([good, bad]) == {good: "an empty file"}
    assert sorted(opened) == [bad, good]


def test_what_was_not_examined_is_only_read(tmp_path, monkeypatch):
    monkeypatch.setattr(examining, "examine_image", lambda *_: pytest.fail("examined"))
    Image.new("L", (4, 4)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("text")
    assert find_unreadable(sorted(tmp_path.iterdir())) == {tmp_path / "bad.png": "not an image"}
