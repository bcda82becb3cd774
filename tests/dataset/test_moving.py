"""Tests that moved images are never lost, wherever the program is interrupted."""

import errno
from pathlib import Path

import pytest

from common import UserError
from dataset import moving
from dataset.moving import finish_moves, move_file, set_aside
from dataset.tables import read_rows, write_rows


@pytest.fixture
def dataset(tmp_path):
    for name in ("A/1.jpg", "A/2.jpg", "B/1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def files(directory):
    return {
        path.relative_to(directory).as_posix(): path.read_text()
        for path in directory.rglob("*")
        if path.is_file() and path.suffix == ".jpg"
    }


def test_set_aside_keeps_the_class_and_logs_the_reason(dataset):
    set_aside(dataset, "rejected", {dataset / "B/1.jpg": "is bad", dataset / "A/2.jpg": "is worse"})
    assert files(dataset) == {"A/1.jpg": "A/1.jpg", "rejected/A/2.jpg": "A/2.jpg", "rejected/B/1.jpg": "B/1.jpg"}
    assert read_rows(dataset / "rejected/log.csv", ["moved_to"]) == [
        {"file": "A/2.jpg", "moved_to": "rejected/A/2.jpg", "reason": "is worse"},
        {"file": "B/1.jpg", "moved_to": "rejected/B/1.jpg", "reason": "is bad"},
    ]


def test_taken_name_gets_a_number(dataset):
    for text in ("first", "second"):
        (dataset / "A/1.jpg").write_text(text)
        set_aside(dataset, "rejected", {dataset / "A/1.jpg": "is bad"})
    assert files(dataset)["rejected/A/1.jpg"] == "first"
    assert files(dataset)["rejected/A/1_2.jpg"] == "second"
    assert len(read_rows(dataset / "rejected/log.csv", ["moved_to"])) == 2


def test_longest_file_names_can_be_moved(dataset):
    long = dataset / "A" / ("\u5199" * 83 + ".jpg")
    for text in ("first", "second"):
        long.write_text(text)
        set_aside(dataset, "rejected", {long: "is bad"})
    moved = {name: text for name, text in files(dataset).items() if len(name) > 50}
    assert sorted(moved.values()) == ["first", "second"]
    assert moved[f"rejected/A/{long.name}"] == "first"


def test_unusual_file_names_are_logged(dataset):
    odd = dataset / "A" / 'a, "b"\nc\udcff.jpg'
    odd.write_text("odd")
    set_aside(dataset, "rejected", {odd: "x"})
    assert (dataset / "rejected" / "A" / odd.name).read_text() == "odd"
    assert read_rows(dataset / "rejected/log.csv", ["moved_to"])[0]["file"] == f"A/{odd.name}"


def test_tables_saved_by_a_spreadsheet_are_read(tmp_path):
    table = tmp_path / "batch.csv"
    for content in ("class;file\r\nK\u00e4se;1, 2.jpg\r\n", "class\tfile\nK\u00e4se\t1, 2.jpg\n",
                    'sep=,\nclass,file\nK\u00e4se,"1, 2.jpg"\n'):  # fmt: skip
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            table.write_bytes(content.encode(encoding))
            assert read_rows(table, ("class", "file")) == [{"class": "K\u00e4se", "file": "1, 2.jpg"}]


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\xfe\xff\xd8", b"\xef\xbb\xbf", b"# comment", b"sep=;\n"])
def test_damaged_tables_are_reported(tmp_path, content):
    (tmp_path / "batch.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"batch.csv is damaged: fix or delete it"):
        read_rows(tmp_path / "batch.csv", ("class", "file"))


@pytest.mark.parametrize("moves_done", [0, 1])
def test_finish_moves_completes_an_interrupted_move(dataset, monkeypatch, moves_done):
    done = []

    def stop(source: Path, target: Path) -> None:
        if len(done) == moves_done:
            raise KeyboardInterrupt
        done.append(source)
        move_file(source, target)

    monkeypatch.setattr(moving, "move_file", stop)
    with pytest.raises(KeyboardInterrupt):
        set_aside(dataset, "rejected", {dataset / "A/1.jpg": "x", dataset / "B/1.jpg": "y"})
    monkeypatch.undo()
    assert finish_moves(dataset, "rejected") == 2 - moves_done
    assert files(dataset) == {"A/2.jpg": "A/2.jpg", "rejected/A/1.jpg": "A/1.jpg", "rejected/B/1.jpg": "B/1.jpg"}


@pytest.mark.parametrize("function", ["write_rows", "move_file"])
def test_repeating_an_interrupted_call_leaves_one_row(dataset, monkeypatch, function):
    def stop(*arguments):
        if function == "move_file" or arguments[0].name == "log.csv":
            raise KeyboardInterrupt
        write_rows(*arguments)

    monkeypatch.setattr(moving, function, stop)
    with pytest.raises(KeyboardInterrupt):
        set_aside(dataset, "left_out", {dataset / "A/1.jpg": "x"})
    monkeypatch.undo()
    set_aside(dataset, "left_out", {dataset / "A/1.jpg": "x"})
    assert [row["moved_to"] for row in read_rows(dataset / "left_out/log.csv", ["moved_to"])] == ["left_out/A/1.jpg"]
    assert [path.name for path in (dataset / "left_out").iterdir() if path.is_file()] == ["log.csv"]


def test_file_that_was_moved_back_can_be_moved_again(dataset):
    for reason in ("first", "second"):
        set_aside(dataset, "left_out", {dataset / "A/1.jpg": reason})
        (dataset / "left_out/A/1.jpg").rename(dataset / "A/1.jpg")
        assert finish_moves(dataset, "left_out") == 0
    (row,) = read_rows(dataset / "left_out/log.csv", ["moved_to"])
    assert row["reason"] == "second"


def test_other_files_are_not_overwritten(dataset):
    with pytest.raises(UserError, match="is another file"):
        move_file(dataset / "A/1.jpg", dataset / "A/2.jpg")
    assert len(files(dataset)) == 3


def test_move_to_another_disk(dataset, monkeypatch):
    def refuse(self, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "rename", refuse)
    move_file(dataset / "A/1.jpg", dataset / "elsewhere/1.jpg")
    assert files(dataset) == {"A/2.jpg": "A/2.jpg", "B/1.jpg": "B/1.jpg", "elsewhere/1.jpg": "A/1.jpg"}


def test_source_of_an_interrupted_copy_is_deleted(dataset):
    (dataset / "A/2.jpg").write_text("A/1.jpg")
    move_file(dataset / "A/1.jpg", dataset / "A/2.jpg")
    assert files(dataset) == {"A/2.jpg": "A/1.jpg", "B/1.jpg": "B/1.jpg"}
