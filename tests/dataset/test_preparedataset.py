"""Tests of fetching from Open Images, with the real FiftyOne and MongoDB on a small folder in FiftyOne's layout."""

import csv
import hashlib
import http.server
import itertools
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import dataset.preparedataset as program
from common import UserError, lock
from dataset import open_images
from dataset.database import connect
from dataset.download import download
from dataset.moving import lock_dataset
from dataset.open_images import Box, wanted_rows
from dataset.preparedataset import Patches, crop, fetch
from helpers import REPOSITORY, imported_for_help

CLASS_IDS = {
    "Axe": "/m/03bk1", "Book": "/m/0bt_c3", "Hammer": "/m/03l9g", "Person": "/m/01g317", "Table": "/m/04bcr3",
    "Human face": "/m/0dzct", "Chisel": "/m/01kb5b", "Tool": "/m/07k1x", "Bookcase": "/m/03__z0",
}  # fmt: skip
HEADER = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
CLICKS = ",XClick1X,XClick2X,XClick3X,XClick4X,XClick1Y,XClick2Y,XClick3Y,XClick4Y"
COUNTS = {  # boxes of each class, unbalanced as in Open Images
    "train": {"Person": 40, "Book": 60, "Axe": 9, "Hammer": 4, "Table": 20},
    "validation": {"Person": 10, "Book": 12, "Axe": 3, "Hammer": 2, "Table": 5},
}
WANTED = ["Axe", "Book", "Hammer"]
FLAGS = ("classes", "max-samples", "splits", "dataset-dir", "zoo-dir", "seed", "min-size", "padding")
PROGRAM = str(REPOSITORY / "src" / "dataset" / "preparedataset.py")


pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    """Make two splits of 40 and 12 drawn images with their tables; there is no test split."""
    zoo = tmp_path_factory.mktemp("zoo")
    generator = np.random.default_rng(5)
    for split, counts in COUNTS.items():
        for folder in ("metadata", "labels", "data"):
            (zoo / split / folder).mkdir(parents=True)
        (zoo / split / "metadata" / "classes.csv").write_text(
            "".join(f"{class_id},{name}\n" for name, class_id in CLASS_IDS.items())
        )
        ids = [f"{split[0].encode().hex()}{number:014x}" for number in range(40 if split == "train" else 12)]
        for image_id in ids:
            draw_image(zoo / split / "data" / f"{image_id}.jpg", generator)
        labels = generator.permutation([label for label, count in counts.items() for _ in range(count)])
        rows = [row(str(generator.choice(ids)), label, generator) for label in labels]
        if split == "train":
            rows = [line + ",0.5" * 8 for line in rows]
        header = HEADER + (CLICKS if split == "train" else "")
        (zoo / split / "labels" / "detections.csv").write_text("\n".join([header, *sorted(rows)]) + "\n")
    return zoo


def draw_image(path, generator):
    """Draw a smooth image in which every part looks different; one in four is grey."""
    channels = 1 if generator.random() < 0.25 else 3
    small = generator.integers(0, 256, (5, 6, channels), dtype=np.uint8)
    Image.fromarray(small.squeeze()).resize((240, 200), Image.Resampling.BICUBIC).save(path, quality=95)


def row(image_id, label, generator):
    low = generator.random(2) * 0.6
    high = low + 0.1 + generator.random(2) * 0.3
    return f"{image_id},xclick,{CLASS_IDS[label]},1,{low[0]:.6f},{high[0]:.6f},{low[1]:.6f},{high[1]:.6f},0,1,0,0,0"


@pytest.fixture
def zoo(staged, tmp_path):
    """A copy of the validation split, to be damaged."""
    shutil.copytree(staged / "validation", tmp_path / "zoo" / "validation")
    return tmp_path / "zoo"


def first_image(zoo):
    return next((zoo / "validation" / "data").iterdir())


def write_detections(zoo, *lines):
    (zoo / "validation" / "labels" / "detections.csv").write_text("\n".join([HEADER, *lines]))


@pytest.fixture
def go(staged, tmp_path):
    """Return a function that fetches from the staged folder into `dataset`, by default patches of any size."""

    def run(max_samples, folder="dataset", **options):
        options = {"zoo_dir": staged, "splits": tuple(COUNTS), "min_size": 1, **options}
        return fetch(WANTED, tmp_path / folder, max_samples=max_samples, **options)

    return run


def contents(folder):
    """Return the checksums of all files in a folder, including hidden ones."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def table(folder):
    with (folder / "open_images.csv").open(newline="") as file:
        return {line["file"]: line for line in csv.DictReader(file)}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Axe/sample_0001.jpg", "Axe/sample_0001.jpg belongs to the drawn sample"),
        ("axe/1.jpg", "dataset has a folder 'axe', which is called 'Axe' in Open Images: rename it"),
        ("Axe /1.jpg", "dataset has a folder 'Axe ', which is called 'Axe' in Open Images: rename it"),
    ],
)
def test_unsuitable_folders_are_errors(go, tmp_path, name, message):
    (tmp_path / "dataset" / name).parent.mkdir(parents=True)
    (tmp_path / "dataset" / name).write_bytes(b"")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=message):
        go(3)
    assert contents(tmp_path) == before


def pixels(image):
    return np.asarray(image.convert("RGB"), dtype=float)


def assert_patch(folder, line, staged, padding=0.0):
    """Check that a file shows the pixels of its box, except for JPEG artefacts."""
    with Image.open(staged / line["split"] / "data" / f"{line['image_id']}.jpg") as image:
        x_min, x_max, y_min, y_max = (float(line[edge]) for edge in ("x_min", "x_max", "y_min", "y_max"))
        wide, high = padding * (x_max - x_min), padding * (y_max - y_min)
        edges = [(x_min - wide) * 240, (y_min - high) * 200, (x_max + wide) * 240, (y_max + high) * 200]
        left, upper, right, lower = (round(edge) for edge in edges)
        expected = image.crop((max(0, left), max(0, upper), min(240, right), min(200, lower)))
    with Image.open(folder / line["file"]) as patch:
        assert (patch.size, patch.mode) == (expected.size, expected.mode)
        assert np.abs(pixels(patch) - pixels(expected)).mean() < 2


def test_each_class_has_its_own_quota(go, staged, tmp_path):
    before = contents(staged)
    assert go(8) == {"Axe": 8, "Book": 8, "Hammer": 6}  # all hammers
    lines = table(tmp_path / "dataset")
    assert sorted(lines) == [
        f"{label}/{number:04d}.jpg" for label, count in (("Axe", 8), ("Book", 8), ("Hammer", 6))
        for number in range(1, count + 1)
    ]  # fmt: skip
    assert {line["split"] for line in lines.values()} == {"train", "validation"}
    assert sorted(contents(tmp_path / "dataset")) == sorted([*lines, "open_images.csv"])
    for line in lines.values():
        assert_patch(tmp_path / "dataset", line, staged)
    assert contents(staged) == before
    tables = [(staged / split / "labels" / "detections.csv").read_text().splitlines() for split in COUNTS]
    rows = {(fields[0], fields[2], *fields[4:8]) for text in tables for fields in (line.split(",") for line in text)}
    for file, line in lines.items():
        box = (line["x_min"], line["x_max"], line["y_min"], line["y_max"])
        assert (line["image_id"], CLASS_IDS[file.split("/")[0]], *box) in rows


def test_second_run_changes_nothing(go, tmp_path):
    go(5)
    before = contents(tmp_path / "dataset")
    assert go(5, seed=1, padding=0.2) == dict.fromkeys(WANTED, 0)
    assert contents(tmp_path / "dataset") == before


def test_larger_quota_only_adds(go, staged, tmp_path, monkeypatch):
    monkeypatch.setattr(program, "_BATCH_SIZE", 4)  # several batches
    go(3)
    before = contents(tmp_path / "dataset")
    (tmp_path / "dataset" / "Axe" / "0002.jpg").unlink()
    (tmp_path / "dataset" / "Book" / "0003.jpg").rename(tmp_path / "moved.jpg")
    shutil.copy(tmp_path / "moved.jpg", tmp_path / "dataset" / "Hammer" / "0042.png")  # the user's own
    assert go(6, seed=3) == {"Axe": 3, "Book": 3, "Hammer": 3}
    after = contents(tmp_path / "dataset")
    gone = {"Axe/0002.jpg", "Book/0003.jpg"}
    assert {name: after.get(name) for name in before if name != "open_images.csv"} == {
        name: None if name in gone else digest for name, digest in before.items() if name != "open_images.csv"
    }
    lines = table(tmp_path / "dataset")
    boxes = [tuple(line.values())[1:] for line in lines.values()]
    assert len(set(boxes)) == len(boxes) == 18
    assert {name for name in lines if name.startswith("Hammer")} == {
        f"Hammer/{number:04d}.jpg" for number in (1, 2, 3, 43, 44, 45)
    }
    for name in set(lines) - gone:
        assert_patch(tmp_path / "dataset", lines[name], staged)


def test_batches_do_not_change_the_result(go, tmp_path, monkeypatch):
    go(7, "at once")
    monkeypatch.setattr(program, "_BATCH_SIZE", 5)
    go(7, "in batches")
    go(4, "in two runs")
    go(7, "in two runs")
    assert contents(tmp_path / "at once") == contents(tmp_path / "in batches") == contents(tmp_path / "in two runs")
    go(7, "other seed", seed=1)
    assert contents(tmp_path / "other seed") != contents(tmp_path / "at once")


def test_small_patches_are_replaced_by_others(go, tmp_path, caplog):
    caplog.set_level("INFO")
    added = go(20, min_size=40)
    for file in table(tmp_path / "dataset"):
        with Image.open(tmp_path / "dataset" / file) as patch:
            assert min(patch.size) >= 40
    assert added["Book"] == 20
    assert added["Hammer"] < 6
    assert f"Hammer: 0 patches were there, {added['Hammer']} added, {6 - added['Hammer']} left out as too small; " in (
        caplog.text
    )
    assert "; no more in train, validation" in caplog.text


def test_padding_adds_context_within_the_image(go, staged, tmp_path):
    go(8, padding=0.5)
    for line in table(tmp_path / "dataset").values():
        assert_patch(tmp_path / "dataset", line, staged, padding=0.5)


def test_modes_without_jpeg_support_become_rgb():
    box = Box.from_edges("train", "1", 0, 0.5, 0, 0.5)
    assert [crop(Image.new(mode, (8, 8)), box, 0).mode for mode in ("P", "RGBA", "L")] == ["RGB", "RGB", "L"]


def test_fiftyone_reads_only_the_chosen_rows(go, staged, monkeypatch):
    import fiftyone
    from fiftyone.utils import openimages

    read = openimages._parse_csv
    seen = {}

    def watched(path, **options):
        data = read(path, **options)
        seen[Path(path)] = len(data)
        return data

    monkeypatch.setattr(openimages, "_parse_csv", watched)
    go(2)
    counts = [count for path, count in seen.items() if path.name == "detections.csv"]
    assert sum(counts) == 6 + len(counts)  # each table has one row without an image
    assert not any(path.is_relative_to(staged) for path in seen)
    assert not [name for name in fiftyone.list_datasets() if name.startswith("open-images-")]


def test_ids_of_digits_are_not_read_as_numbers(zoo, tmp_path):
    image = first_image(zoo)
    image.rename(image.with_name("0000000000000017.jpg"))
    line = f"0000000000000017,xclick,{CLASS_IDS['Tool']},1,0.0,0.55,0.022673031,0.9642005,0,0,0,0,0"
    write_detections(zoo, line, line)
    assert fetch(["tool"], tmp_path / "dataset", zoo, ["validation"]) == {"Tool": 1}
    (line,) = table(tmp_path / "dataset").values()
    assert list(line.values())[2:] == ["0000000000000017", "0.000000", "0.550000", "0.022673", "0.964201"]


def test_box_of_two_classes_is_used_once(zoo, tmp_path):
    ids = CLASS_IDS["Axe"], CLASS_IDS["Tool"]
    write_detections(zoo, *(f"{first_image(zoo).stem},xclick,{id_},1,0,0.5,0,0.5,0,0,0,0,0" for id_ in ids))
    assert sum(fetch(["Axe", "Tool"], tmp_path / "dataset", zoo, ["validation"]).values()) == 1


def test_unreadable_images_are_left_out(staged, zoo, tmp_path, caplog):
    shutil.copytree(staged / "train", zoo / "train")
    for image in (zoo / "train" / "data").iterdir():
        image.write_bytes(image.read_bytes()[:700])
    assert fetch(["Axe"], tmp_path / "dataset", zoo, tuple(COUNTS), min_size=1) == {"Axe": 3}
    assert "left out: " in caplog.text


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the program catches it."""


def some_patches(known=()):
    """Yield three axes and three books, except those with known boxes."""
    for number in range(3):
        for label, edge in (("Axe", 1), ("Book", 0.5)):
            box = Box.from_edges("train", f"{number}", 0, 1, 0, edge)
            if box not in known:
                yield label, box, Image.new("RGB", (9, 9), (60 * number, 0, 90))


def one_more(size=9):
    return [("Axe", Box.from_edges("test", "9", 0, 1, 0, 1), Image.new("RGB", (size, size)))]


def kill_in(monkeypatch, target, name, after, calls):
    """Make one call of a function raise `Killed`, before or after its work."""
    real, count = getattr(target, name), itertools.count(1)

    def fatal(*arguments, **options):
        number = next(count)
        if number == calls and not after:
            raise Killed
        real(*arguments, **options)
        if number == calls:
            raise Killed

    monkeypatch.setattr(target, name, fatal)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("target", "name", "calls"),
    [
        (Image.Image, "save", 1), (Image.Image, "save", 4), (Image.Image, "save", 6),
        (program, "write_rows", 1), (os, "replace", 1), (os, "replace", 2), (os, "replace", 4), (os, "replace", 7),
    ],
)  # fmt: skip
def test_killed_batch_counts_completely_or_not_at_all(monkeypatch, tmp_path, target, name, calls, after):
    for folder in ("undisturbed", "killed"):
        (tmp_path / folder).mkdir()
        Patches(tmp_path / folder).add(one_more())
    Patches(tmp_path / "undisturbed").add(some_patches())
    first = contents(tmp_path / "killed")
    patches = Patches(tmp_path / "killed")
    with monkeypatch.context() as patch:
        kill_in(patch, target, name, after, calls)
        with pytest.raises(Killed):
            patches.add(some_patches())
    patches = Patches(tmp_path / "killed")
    assert contents(tmp_path / "killed") in (first, contents(tmp_path / "undisturbed"))
    patches.add(some_patches(patches.boxes))
    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")


def test_interrupted_fetch_gives_identical_results(go, tmp_path, monkeypatch):
    monkeypatch.setattr(program, "_BATCH_SIZE", 6)
    go(7, "undisturbed")
    with monkeypatch.context() as patch:
        kill_in(patch, program, "write_rows", after=False, calls=2)
        with pytest.raises(Killed):
            go(7)
    assert len(table(tmp_path / "dataset")) == 6
    assert sorted(contents(tmp_path / "dataset")) == sorted([*table(tmp_path / "dataset"), "open_images.csv"])
    go(7)
    assert contents(tmp_path / "dataset") == contents(tmp_path / "undisturbed")


def test_full_disk_leaves_existing_patches(tmp_path):
    patches = Patches(tmp_path)
    patches.add(some_patches())
    before = contents(tmp_path)
    (tmp_path / "Axe" / ".0004.partial.jpg").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        patches.add(one_more(99))
    Patches(tmp_path)
    assert contents(tmp_path) == before


def test_user_files_are_not_overwritten(tmp_path, monkeypatch):
    patches = Patches(tmp_path)
    with monkeypatch.context() as patch:
        kill_in(patch, os, "replace", after=True, calls=1)  # of the table
        with pytest.raises(Killed):
            patches.add(some_patches())
    (tmp_path / "Axe" / "0001.jpg").write_bytes(b"precious")
    Patches(tmp_path)
    assert (tmp_path / "Axe" / "0001.jpg").read_bytes() == b"precious"
    assert len(list((tmp_path / "Axe").iterdir())) == 3


def test_locked_folder_is_an_error(go, tmp_path):
    (tmp_path / "dataset").mkdir()
    with lock_dataset(tmp_path / "dataset"), pytest.raises(UserError, match=r"another program is using .*/dataset"):
        go(3)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"file,split\nAxe/0001.jpg,train\n",
        b"file,split,image_id,x_min,x_max,y_min,y_max\nAxe",
        b"file,split,image_id,x_min,x_max,y_min,y_max\nAxe/\xff.jpg",
        b"file,split,image_id,x_min,x_max,y_min,y_max\nAxe/0001.jpg,train,a,0,1,0,1,more",
    ],
)
def test_damaged_table_of_patches_is_an_error(go, tmp_path, text):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "open_images.csv").write_bytes(text)
    with pytest.raises(UserError, match=r"open_images\.csv is damaged"):
        go(3)
    assert (tmp_path / "dataset" / "open_images.csv").read_bytes() == text


# the table of detections

FIELD = st.text(alphabet="abm0_/", max_size=6)
LABEL = st.sampled_from([*CLASS_IDS.values(), "/m/0", "/m/03bk", "/m/03bk11", "/m/0123456789", "/m/0123456780"])


@st.composite
def lines_of_tables(draw):
    fields = [draw(FIELD), draw(FIELD), draw(LABEL), *draw(st.lists(FIELD | LABEL, min_size=10, max_size=10))]
    return ",".join(fields)


@settings(max_examples=200, deadline=None)
@given(
    lines=st.lists(lines_of_tables(), max_size=25),
    wanted=st.sets(LABEL, max_size=4),
    end=st.sampled_from(["\n", "\r\n"]),
    last_end=st.booleans(),
    chunk=st.integers(2, 3000),
)
def test_filter_keeps_the_rows_that_a_csv_reader_keeps(tmp_path_factory, lines, wanted, end, last_end, chunk):
    text = end.join([HEADER, *lines]) + (end if last_end else "")
    path = tmp_path_factory.getbasetemp() / "property.csv"
    path.write_bytes(text.encode())
    expected = [line for line in lines if next(csv.reader([line]))[2] in wanted]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_images, "_CHUNK", chunk)
        kept = list(wanted_rows(path, wanted))
    assert [line.decode().rstrip("\r\n") for line in kept] == expected
    assert all(line.endswith(end.encode()) for line in kept[:-1])
    assert all(line.endswith(b"\n") for line in kept)


@pytest.mark.parametrize(
    "rest",
    [
        "1,,0.2,0.1,0.2,0,0,0,0,0",
        "1,0.1,0.2,0.1,0.2",
        "1,0.1,0.2,0.1,0.2,,0,0,0,0",
        "1,nan,0.2,0.1,0.2,0,0,0,0,0",
        "1,0.6,0.2,0.1,0.2,0,0,0,0,0",
    ],
)
def test_damaged_row_is_an_error(zoo, tmp_path, rest):
    image = first_image(zoo).stem
    good = f"{image},xclick,{CLASS_IDS['Tool']},1,0,0.5,0,0.5,0,0,0,0,0"  # a truncated last line is found earlier
    write_detections(zoo, f"{image},xclick,{CLASS_IDS['Axe']},{rest}", good)
    message = rf"detections.csv has a damaged row: {image},xclick,/m/.* \(delete the file to"
    with pytest.raises(UserError, match=message):
        fetch(["Axe"], tmp_path / "dataset", zoo, ["validation"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a detections table"),
        ("<html>404</html>\n", "not a detections table"),
        (
            f"{HEADER}\n1,xclick,/m/03bk1,1,0.1,0.2,0.1,0.2,0,0,0,0,0\n1,xclick,/m/03bk1,1,0.1",
            "truncated in its last line",
        ),
    ],
)
def test_other_or_truncated_tables_are_errors(tmp_path, text, message):
    (tmp_path / "detections.csv").write_text(text)
    with pytest.raises(UserError, match=f"detections.csv is {message}"):
        list(wanted_rows(tmp_path / "detections.csv", ["/m/03bk1"]))


# downloads


class Server(http.server.ThreadingHTTPServer):
    """Serves the files of a folder. It can drop connections, ignore ranges, and answer with errors."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.drops, self.ranges, self.requests = folder, 0, True, []
        self.fault: int | None = None  # the status of every answer
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        """Print nothing about closed connections."""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, requested = self.server, self.headers.get("Range")
        path = server.folder / self.path.lstrip("/")
        server.requests.append(requested)
        if server.fault or not path.is_file():
            return self.send_error(server.fault or 404)
        body = path.read_bytes()
        if not server.ranges or not requested:
            return self.answer(200, body)
        first = int(requested.removeprefix("bytes=").split("-")[0])
        if first >= len(body):
            return self.answer(416, b"", f"bytes */{len(body)}")
        self.answer(206, body[first:], f"bytes {first}-{len(body) - 1}/{len(body)}")

    do_HEAD = do_GET

    def answer(self, status, body, content_range=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        if self.command == "GET" and status != 416:
            drop = self.server.drops > 0
            self.server.drops -= drop
            self.wfile.write(body[: len(body) // 2] if drop else body)
            self.close_connection = True

    def log_message(self, *arguments):
        """Print nothing."""


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    with Server(tmp_path / "served") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def big(server):
    """The content of the file to download, 5 MB."""
    content = np.random.default_rng(0).bytes(5_000_000)
    (server.folder / "big.csv").write_bytes(content)
    return content


@pytest.fixture
def get_big(server, big, tmp_path):
    """A function that downloads the file to `tmp_path / "got"`."""
    (tmp_path / "got").mkdir()
    return lambda: download(f"{server.address}/big.csv", tmp_path / "got" / "big.csv")


def assert_complete(folder, big):
    assert [path.name for path in folder.iterdir()] == ["big.csv"]
    assert (folder / "big.csv").read_bytes() == big


@pytest.mark.parametrize("ranges", [True, False])
def test_interrupted_download_continues(server, big, get_big, tmp_path, ranges):
    server.drops, server.ranges = 1, ranges
    with pytest.raises(UserError, match=r"was interrupted: [\d,]+ bytes are kept in .* to resume"):
        get_big()
    (part,) = (tmp_path / "got").iterdir()
    kept = part.stat().st_size
    assert part.name == ".big.csv.partial"
    assert 2_400_000 < kept <= 2_500_000
    get_big()
    assert server.requests[1] == f"bytes={kept}-"
    assert_complete(tmp_path / "got", big)


def test_server_error_keeps_the_partial_download(server, big, get_big, tmp_path):
    part = tmp_path / "got" / ".big.csv.partial"
    part.write_bytes(big[:3_000_000])
    server.fault = 503
    with pytest.raises(UserError, match="the server answers 503"):
        get_big()
    assert part.stat().st_size == 3_000_000
    server.fault = None
    get_big()
    assert server.requests[-1] == "bytes=3000000-"
    assert_complete(tmp_path / "got", big)


def test_complete_partial_download_is_renamed(big, get_big, tmp_path):
    (tmp_path / "got" / ".big.csv.partial").write_bytes(big)
    get_big()
    assert_complete(tmp_path / "got", big)


def test_partial_download_of_another_file_is_discarded(big, get_big, tmp_path):
    (tmp_path / "got" / ".big.csv.partial").write_bytes(bytes(6_000_000))
    with pytest.raises(UserError, match="the server answers 416"):
        get_big()
    get_big()
    assert_complete(tmp_path / "got", big)


def test_missing_file_on_the_server_is_an_error(server, tmp_path):
    with pytest.raises(UserError, match=r"none\.csv: the server answers 404"):
        download(f"{server.address}/none.csv", tmp_path / "none.csv")
    assert not (tmp_path / "none.csv").exists()


def test_simultaneous_downloads_are_an_error(get_big, tmp_path):
    (tmp_path / "got" / ".big.csv.partial").touch()
    with (
        lock(tmp_path / "got" / ".big.csv.partial", "busy"),
        pytest.raises(UserError, match=r"another program is downloading .*big\.csv"),
    ):
        get_big()


@pytest.fixture
def fail(call):
    """Runs the program, which must fail; returns its error message."""

    def run(*arguments):
        status, output, lines = call(program, *arguments)
        assert (status, output) == (2, "")
        return lines[-1]

    return run


def test_missing_tables_and_images_are_downloaded(server, staged, tmp_path, monkeypatch, fail):
    """Tables are downloaded by this project, images by FiftyOne, here from a server that drops connections."""
    shutil.copytree(staged / "validation" / "data", server.folder / "open-images-dataset" / "validation")
    shutil.copy(staged / "validation" / "metadata" / "classes.csv", server.folder)
    shutil.copy(staged / "validation" / "labels" / "detections.csv", server.folder)
    monkeypatch.setattr(open_images, "_CLASSES_URL", f"{server.address}/classes.csv")
    monkeypatch.setattr(open_images, "_DETECTIONS_URLS", {"validation": f"{server.address}/detections.csv"})
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.address)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    arguments = ["--zoo-dir", tmp_path / "zoo", "--dataset-dir", tmp_path / "dataset", "--splits", "validation"]
    server.drops = 1
    assert "cannot download http" in fail(*arguments)
    fetch(["Axe"], tmp_path / "dataset", tmp_path / "zoo", ["validation"], min_size=1)
    before = contents(tmp_path / "dataset")
    server.drops = 1000
    line = fail(*arguments, "--classes", "book", "--min-size", 1)
    assert "cannot download images of validation" in line
    assert contents(tmp_path / "dataset") == before
    server.drops = 0
    assert fetch(["Book"], tmp_path / "dataset", tmp_path / "zoo", ["validation"], min_size=1) == {"Book": 12}
    lines = table(tmp_path / "dataset")
    assert Counter(file.split("/")[0] for file in lines) == {"Axe": 3, "Book": 12}
    for line in lines.values():
        assert_patch(tmp_path / "dataset", line, staged)
    ids = {line["image_id"] for line in lines.values()}
    assert {path.name for path in (tmp_path / "zoo" / "validation" / "data").glob("*.jpg")} == {f"{i}.jpg" for i in ids}


def test_missing_network_is_an_error(staged, tmp_path, monkeypatch, fail):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # a closed port
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    arguments = ["--dataset-dir", tmp_path / "dataset", "--zoo-dir"]
    line = fail(*arguments, tmp_path / "zoo")
    assert "cannot download https://storage.googleapis.com/openimages/v5/class-descriptions-boxable.csv" in line
    shutil.copytree(staged, tmp_path / "zoo", dirs_exist_ok=True)
    line = fail(*arguments, tmp_path / "zoo")
    assert "cannot download https://storage.googleapis.com/openimages/v5/test-annotations-bbox.csv" in line
    for image in (tmp_path / "zoo" / "train" / "data").iterdir():
        image.unlink()
    line = fail(*arguments, tmp_path / "zoo", "--splits", "train")
    assert "cannot download images of train (no network?" in line
    assert contents(tmp_path / "dataset") == {}


def test_full_disk_while_downloading(server, big, tmp_path, monkeypatch, fail):
    monkeypatch.setattr(open_images, "_CLASSES_URL", f"{server.address}/big.csv")
    (tmp_path / "zoo" / "train" / "metadata").mkdir(parents=True)
    (tmp_path / "zoo" / "train" / "metadata" / ".classes.csv.partial").symlink_to("/dev/full")
    line = fail("--zoo-dir", tmp_path / "zoo", "--dataset-dir", tmp_path / "dataset")
    assert line.startswith("error: No space left on device")
    assert not (tmp_path / "zoo" / "train" / "metadata" / "classes.csv").exists()


# flags and the database


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classes", "Hamer"], "Open Images has no class 'Hamer': the nearest are Hammer"),
        (["--classes", "axe", "xylophonist"], "Open Images has no class 'xylophonist', nor one with a similar name"),
        (["--splits", "val"], "argument --splits: invalid choice: 'val'"),
        (["--max-samples", "0"], "--max-samples 0: must be at least 1"),
        (["--seed", "-1"], "--seed -1: must be at least 0"),
        (["--min-size", "0"], "--min-size 0: must be at least 1"),
        (["--padding", "-0.1"], "--padding -0.1: must be a finite number of at least 0"),
        (["--padding", "nan"], "--padding nan: must be a finite number of at least 0"),
        (["--max-samples", "many"], "argument --max-samples: invalid int value: 'many'"),
    ],
)
def test_invalid_arguments(staged, tmp_path, monkeypatch, fail, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert fail("--zoo-dir", staged, *arguments).startswith(f"error: {message}")
    assert not list(tmp_path.iterdir())


def test_class_names_in_any_case_and_order(staged, tmp_path):
    assert fetch(["HAMMER", "human FACE", "hammer"], tmp_path, staged, ["train"], 2) == {"Hammer": 2, "Human face": 0}


def test_default_zoo_folder_is_fiftyones(staged, tmp_path, monkeypatch):
    import fiftyone

    monkeypatch.setattr(fiftyone.config, "dataset_zoo_dir", str(tmp_path))
    (tmp_path / "open-images-v7").symlink_to(staged)
    assert fetch(["Axe"], tmp_path / "dataset", splits=["validation"], min_size=1) == {"Axe": 3}


def test_help_imports_no_heavy_packages():
    text, heavy = imported_for_help("dataset.preparedataset", {"fiftyone", "pandas", "requests", "torch"})
    assert all(f"--{name}" in text for name in FLAGS)
    assert not heavy


def run_in_shell(code, staged, tmp_path, **environment):
    """Run the program as a user would, after some code."""
    arguments = ["--zoo-dir", str(staged), "--splits", "validation", "--min-size", "1"]
    code = f"{code}\nimport runpy, sys\nsys.argv[1:] = {arguments}\nrunpy.run_path({PROGRAM!r}, run_name='__main__')"
    environment = {**os.environ, **environment}
    environment.pop("FIFTYONE_PRIVATE_DATABASE_PORT", None)  # of the database of this process
    return subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )


def test_program_reports_each_class(staged, tmp_path):
    result = run_in_shell("", staged, tmp_path)
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr.splitlines() == [
        "Axe: 0 patches were there, 3 added; no more in validation",
        "Book: 0 patches were there, 12 added; no more in validation",
        "Hammer: 0 patches were there, 2 added; no more in validation",
    ]


def test_broken_installation_is_not_taken_for_a_missing_database(monkeypatch):
    monkeypatch.setitem(sys.modules, "fiftyone", None)  # makes the import fail
    with pytest.raises(ImportError):
        connect()


NO_MONGOD = """
import fiftyone.constants, fiftyone.service.util
fiftyone.constants.FIFTYONE_DB_BIN_DIR = "/nowhere"
fiftyone.service.util.find_processes_by_args = lambda arguments: []  # nor any that another program has started
"""
NO_SERVER = {"FIFTYONE_DATABASE_URI": "mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=200"}


@pytest.mark.parametrize(("code", "environment"), [(NO_MONGOD, {}), ("", NO_SERVER)], ids=["no mongod", "no server"])
def test_missing_database_is_an_error(staged, tmp_path, code, environment):
    result = run_in_shell(code, staged, tmp_path, **environment)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: FiftyOne cannot connect to MongoDB (")
    assert not contents(tmp_path)


SLOW_EXEC = """
import fiftyone.service.util as util

listening = util.get_listening_tcp_ports
reads = 0

def before_exec(process):
    global reads
    if "--dbpath" in process.cmdline() and "--51-service" not in process.cmdline() and (reads := reads + 1) <= 2:
        process = process.parent()
    return listening(process)

util.get_listening_tcp_ports = before_exec
util.find_processes_by_args = lambda arguments: []  # a server of its own, not that of another program
"""


def test_port_of_the_service_is_not_taken_for_mongodbs(staged, tmp_path):
    """Between fork and exec, the process that becomes MongoDB still holds its parent's socket."""
    result = run_in_shell(SLOW_EXEC, staged, tmp_path, FIFTYONE_DATABASE_DIR=str(tmp_path / "database"))
    assert result.returncode == 0, result.stderr
