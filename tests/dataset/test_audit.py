"""Tests of what the audit finds, and that fixing it loses nothing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from common import UserError
from dataset.audit import DUPLICATE, LABEL_CONFLICT, LEAK, audit, describe, fix, summarise, to_json
from dataset.folders import image_files, read_folder
from dataset.groups import Link, LinkKind, Links, find_groups
from dataset.moving import lock_dataset
from dataset.quality import BLANK, DARK
from dataset.sample import draw_numbered
from dataset.tables import read_rows, write_rows
from helpers import digests, start


@pytest.fixture
def folders(tmp_path):
    """Make a training and a test folder with six different drawings of each class."""
    for testing, folder in ((False, "dataset"), (True, "testing")):
        for label in ("Axe", "Book"):
            (tmp_path / folder / label).mkdir(parents=True)
            for number in range(6):
                image, _ = draw_numbered(label, 0, testing, number)
                image.save(tmp_path / folder / label / f"{number}.jpg")
    return tmp_path / "dataset", tmp_path / "testing"


def kinds(report):
    return {(each.path.name, each.of.name, each.kind, each.exact) for each in report.duplicates}


def copy_smaller(source, target):
    with Image.open(source) as image:
        image.resize((image.width * 2 // 3, image.height * 2 // 3)).save(target, quality=60)


def test_clean_dataset(folders):
    dataset, testing = folders
    report = audit(dataset, [testing])
    assert report.images == {dataset: {"Axe": 6, "Book": 6}, testing: {"Axe": 6, "Book": 6}}
    assert (report.skipped, report.duplicates, report.clean) == ({}, [], True)
    assert len(report.shift[testing]) == 7


def test_duplicates_label_conflicts_and_leaks_are_distinguished(folders):
    dataset, testing = folders
    shutil.copy(dataset / "Axe/0.jpg", dataset / "Axe/same.jpg")
    copy_smaller(dataset / "Axe/1.jpg", dataset / "Axe/smaller.jpg")
    copy_smaller(dataset / "Axe/2.jpg", dataset / "Book/conflict.jpg")
    shutil.copy(testing / "Book/3.jpg", dataset / "Book/leak.jpg")
    copy_smaller(testing / "Book/4.jpg", dataset / "Axe/leak_elsewhere.jpg")
    copy_smaller(testing / "Book/5.jpg", testing / "Book/twice.jpg")
    report = audit(dataset, [testing])
    assert kinds(report) == {
        ("same.jpg", "0.jpg", DUPLICATE, True),
        ("smaller.jpg", "1.jpg", DUPLICATE, False),
        ("conflict.jpg", "2.jpg", LABEL_CONFLICT, False),
        ("leak.jpg", "3.jpg", LEAK, True),
        ("leak_elsewhere.jpg", "4.jpg", LEAK, False),
        ("twice.jpg", "5.jpg", DUPLICATE, False),
    }
    assert len(report.leaks) == 2
    assert not report.clean


def test_every_unreadable_file_is_reported(folders):
    dataset, testing = folders
    (dataset / "Axe/empty.jpg").write_bytes(b"")
    (dataset / "Axe/text.png").write_text("text")
    (dataset / "Axe/notes.txt").write_text("text")
    (testing / "Book/cut.jpg").write_bytes((testing / "Book/0.jpg").read_bytes()[:3000])
    (dataset / "Axe_augmented").mkdir()
    (dataset / "Axe_augmented/0_aug_0001.jpg").write_bytes(b"")
    for litter in (".hidden.jpg", "Thumbs.db"):
        (dataset / "Axe" / litter).write_bytes(b"")
    assert {path.name: reason for path, reason in audit(dataset, [testing]).skipped.items()} == {
        "empty.jpg": "an empty file",
        "text.png": "not an image",
        "notes.txt": "not an image",
        "cut.jpg": "image file is truncated (1 bytes not processed)",
        "0_aug_0001.jpg": "an empty file",
    } | {"cut.jpg": audit(dataset, [testing]).skipped[testing / "Book/cut.jpg"]}
    assert "truncated" in audit(dataset, [testing]).skipped[testing / "Book/cut.jpg"]


def test_images_outside_classes_are_reported_and_not_moved(folders):
    dataset, testing = folders
    (dataset / ".22LR").mkdir()
    shutil.copy(dataset / "Axe/0.jpg", dataset / ".22LR/0.jpg")
    shutil.copy(dataset / "Axe/0.jpg", dataset / "loose")
    before = digests(dataset)
    report = audit(dataset, [testing])
    assert [path.name for path in report.skipped] == [".22LR", "loose"]
    assert fix(report) == 0
    assert digests(dataset) == before


def test_class_named_rejected_is_audited_and_not_moved_to(folders):
    dataset, testing = folders
    for folder in folders:
        (folder / "Book").rename(folder / "rejected")
    shutil.copy(dataset / "Axe/0.jpg", dataset / "Axe/same.jpg")
    report = audit(dataset, [testing])
    assert report.images[dataset] == {"Axe": 7, "rejected": 6}
    before = digests(dataset)
    with pytest.raises(UserError, match=r"dataset/rejected is a class, but images are to be moved to a folder"):
        fix(report)
    assert digests(dataset) == before


def test_test_folder_may_lack_classes_and_images(folders):
    dataset, testing = folders
    shutil.rmtree(testing / "Book")
    report = audit(dataset, [testing])
    assert report.images[testing] == {"Axe": 6}
    assert report.clean
    shutil.rmtree(testing / "Axe")
    (testing / "Axe").mkdir()
    assert audit(dataset, [testing]).images.keys() == {dataset}


def test_test_folder_without_images_is_fixed(folders):
    dataset, testing = folders
    shutil.rmtree(testing)
    (testing / "Axe").mkdir(parents=True)
    (testing / "Axe/photo.heic").write_text("of a telephone")
    assert fix(audit(dataset, [testing])) == 1
    assert (testing / "rejected/Axe/photo.heic").exists()
    assert fix(audit(dataset, [testing])) == 0


def test_file_that_was_moved_back_stays(folders):
    dataset, testing = folders
    (dataset / "Axe/bad.jpg").write_text("bad")
    fix(audit(dataset, [testing]))
    draw_numbered("Axe", 0, False, 20)[0].save(dataset / "rejected/Axe/bad.jpg")
    (dataset / "rejected/Axe/bad.jpg").rename(dataset / "Axe/bad.jpg")
    result = start("dataset/audit.py", "--fix", "--dataset-dir", dataset, "--testing-dir", testing, cwd=dataset)
    assert result.returncode == 0, result.stdout
    assert (dataset / "Axe/bad.jpg").exists()


def test_files_of_the_test_folder_are_not_those_of_the_current_folder(folders, monkeypatch):
    """`Path(".")` is among the parents of every relative path."""
    dataset, testing = folders
    shutil.copy(dataset / "Axe/0.jpg", dataset / "Axe/same.jpg")
    for number in range(4):
        copy_smaller(testing / f"Axe/{number}.jpg", testing / f"Axe/smaller_{number}.jpg")
    (testing / "Book/empty.jpg").write_bytes(b"")
    monkeypatch.chdir(dataset)
    assert fix(audit(Path("."), [Path("../testing")])) == 6
    assert [path.name for path in image_files(dataset / "rejected/Axe")] == ["same.jpg"]
    assert len(image_files(testing / "rejected/Axe")) == 4
    assert (testing / "rejected/Book/empty.jpg").exists()
    assert audit(Path("."), [Path("../testing")]).clean


def test_locked_dataset_is_not_fixed(folders):
    dataset, testing = folders
    (dataset / "Axe/bad.jpg").write_text("bad")
    with lock_dataset(testing):
        result = start("dataset/audit.py", "--fix", "--dataset-dir", dataset, "--testing-dir", testing, cwd=dataset)
    assert result.returncode == 2
    assert result.stderr == f"error: another program is using {testing}: wait until it has finished\n"
    assert (dataset / "Axe/bad.jpg").exists()


def test_duplicate_test_image_makes_a_training_image_leak(folders, monkeypatch):
    """0 is a near-duplicate of 1, and 1 of the training image. 1 is still tested on, so it leaks."""
    dataset, testing = folders
    names = [testing / "Axe/0.jpg", testing / "Axe/1.jpg", dataset / "Axe/0.jpg"]

    def find(images, *_):
        indices = {image.path: index for index, image in enumerate(images)}
        pairs = [
            sorted(indices[path] for path in pair) for pair in (names[:2], names[1:]) if indices.keys() >= set(pair)
        ]
        return Links([Link(*pair, LinkKind.NEAR_DUPLICATE) for pair in sorted(pairs)], [])

    monkeypatch.setattr("dataset.groups.find_links", find)
    found = {(each.path, each.kind) for each in audit(dataset, [testing]).duplicates}
    assert (dataset / "Axe/0.jpg", LEAK) in found
    assert len(found) == 2


def test_fix_keeps_one_of_each_and_loses_none(folders, tmp_path):
    dataset, testing = folders
    for number in range(3):
        shutil.copy(dataset / "Axe/0.jpg", dataset / "Axe" / f"same_{number}.jpg")
    copy_smaller(dataset / "Axe/1.jpg", dataset / "Book/conflict.jpg")
    copy_smaller(testing / "Book/3.jpg", dataset / "Book/leak.jpg")
    shutil.copy(testing / "Axe/1.jpg", testing / "Axe/twice.jpg")
    (dataset / "Axe/bad.jpg").write_text("bad")
    before = sorted(digests(tmp_path).values())
    assert fix(audit(dataset, [testing])) == 7
    report = audit(dataset, [testing])
    assert (report.skipped, report.duplicates) == ({}, [])
    after = {name: digest for name, digest in digests(tmp_path).items() if not name.endswith("log.csv")}
    assert sorted(after.values()) == before
    assert [path.name for path in image_files(dataset / "Axe")] == [f"{number}.jpg" for number in range(6)]
    assert {row["moved_to"] for row in read_rows(dataset / "rejected/log.csv", ["moved_to"])} == {
        "rejected/Axe/bad.jpg", "rejected/Axe/same_0.jpg", "rejected/Axe/same_1.jpg", "rejected/Axe/same_2.jpg",
        "rejected/Book/conflict.jpg", "rejected/Book/leak.jpg",
    }  # fmt: skip
    assert [row["moved_to"] for row in read_rows(testing / "rejected/log.csv", ["moved_to"])] == [
        "rejected/Axe/twice.jpg"
    ]
    state = digests(tmp_path)
    assert fix(report) == 0
    assert digests(tmp_path) == state


def test_only_near_duplicates_of_kept_images_are_moved(folders, monkeypatch):
    """The middle image of a chain of three is moved, but not the last, which no kept image resembles."""
    dataset, _ = folders
    names = ["0.jpg", "1.jpg", "2.jpg"]
    images = [path for path in image_files(dataset / "Axe") if path.name in names]
    for path, side in zip(images, (300, 200, 100), strict=True):
        Image.fromarray(np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)

    def find(images, *_):
        indices = {image.size[0]: index for index, image in enumerate(images) if image.size[0] == image.size[1]}
        pairs = [
            sorted(indices[side] for side in pair) for pair in ((300, 200), (200, 100)) if indices.keys() >= set(pair)
        ]
        return Links([Link(*pair, LinkKind.NEAR_DUPLICATE) for pair in sorted(pairs)], [])

    monkeypatch.setattr("dataset.groups.find_links", find)
    assert {(each.path.name, each.of.name) for each in audit(dataset, []).duplicates} == {("1.jpg", "0.jpg")}


def test_crops_of_one_photograph_leak_but_are_not_duplicates(folders):
    dataset, testing = folders
    rows = [("Axe/0.jpg", "p"), ("Axe/9.jpg", "p"), ("Book/1.jpg", "q"), ("Book/2.jpg", "q")]
    (testing / "Axe/0.jpg").rename(testing / "Axe/9.jpg")  # as moved from the training folder
    write_rows(dataset / "open_images.csv", ("file", "image_id"), [{"file": f, "image_id": i} for f, i in rows])
    write_rows(testing / "testing_batch.csv", ("class", "file"), [{"class": "Axe", "file": "9.jpg"}])
    report = audit(dataset, [testing])
    assert kinds(report) == {("0.jpg", "9.jpg", LEAK, False)}
    assert f"  {dataset}/Axe/0.jpg is cut from the same photograph as {testing}/Axe/9.jpg" in describe(report)
    assert fix(report) == 1
    (row,) = read_rows(dataset / "rejected/log.csv", ["reason"])
    assert row["reason"] == f"leak: is cut from the same photograph as {testing}/Axe/9.jpg"


def test_images_with_the_same_stem_leak_but_are_not_duplicates(folders):
    """The name of an augmented image does not tell which of them is its source."""
    dataset, testing = folders
    draw_numbered("Axe", 0, False, 20)[0].save(dataset / "Axe/3.png")
    draw_numbered("Axe", 0, False, 21)[0].save(dataset / "Axe/9.png")
    (testing / "Axe/0.jpg").rename(testing / "Axe/9.jpg")
    assert audit(dataset, [testing]).duplicates == []
    write_rows(testing / "testing_batch.csv", ("class", "file"), [{"class": "Axe", "file": "9.jpg"}])
    report = audit(dataset, [testing])
    assert kinds(report) == {("9.png", "9.jpg", LEAK, False)}
    assert f"  {dataset}/Axe/9.png has the same class and stem as {testing}/Axe/9.jpg" in describe(report)
    assert count_overlap(dataset, testing) == 1
    fix(report)
    assert count_overlap(dataset, testing) == 0


def test_images_linked_to_a_test_image_through_others_leak(folders):
    dataset, testing = folders
    copy_smaller(testing / "Axe/3.jpg", dataset / "Axe/leak.jpg")
    rows = [{"file": f"Axe/{name}.jpg", "image_id": "p"} for name in ("leak", "1")]
    write_rows(dataset / "open_images.csv", ("file", "image_id"), rows)
    report = audit(dataset, [testing])
    assert {(each.path.name, each.of.name, each.link) for each in report.leaks} == {
        ("leak.jpg", "3.jpg", "near-duplicate"),
        ("1.jpg", "3.jpg", "group"),
    }
    fix(report)
    before, after = find_groups([read_folder(directory) for directory in (dataset, testing)]).numbers
    assert not set(before.tolist()) & set(after.tolist())
    assert audit(dataset, [testing]).leaks == []


def test_images_of_a_fixed_camera_are_not_duplicates(folders):
    dataset, testing = folders
    generator = np.random.default_rng(0)
    with Image.open(dataset / "Axe/0.jpg") as image:
        scene = np.asarray(image.resize((60, 60))).astype(int)
    for directory, count in ((dataset, 40), (testing, 10)):
        shutil.rmtree(directory / "Axe")
        (directory / "Axe").mkdir()
        for number in range(count):
            pixels = (scene + generator.normal(0, 10, scene.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(directory / "Axe" / f"{number}.png")
    with Image.open(testing / "Axe/3.png") as image:
        image.save(dataset / "Axe/leak.jpg", quality=80)
    report = audit(dataset, [testing])
    assert kinds(report) == {("leak.jpg", "3.png", LEAK, False)}
    (note,) = report.notes
    assert note.startswith("class Axe: 100% of random pairs of its images are near-duplicates (fixed camera, symbols?)")
    assert note in list(describe(report))
    assert note in list(summarise(report))
    assert to_json(report)["notes"] == [note]


def count_overlap(dataset, testing):
    before, after = find_groups([read_folder(directory) for directory in (dataset, testing)]).numbers
    return len(set(before.tolist()) & set(after.tolist()))


def test_classes_on_one_background_are_clean_after_one_fix(tmp_path):
    """The images of 30 classes differ only by a small object."""
    dataset, testing = tmp_path / "dataset", tmp_path / "testing"
    scene = Image.fromarray(np.random.default_rng(3).integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((96, 96))
    for label in range(30):
        for number in range(15):
            generator = np.random.default_rng([9, label, number])
            image = scene.copy()
            pattern = Image.fromarray(generator.integers(0, 256, (3, 3, 3), dtype=np.uint8))
            image.paste(pattern.resize((24, 24)), tuple(generator.integers(0, 72, 2).tolist()))
            pixels = np.asarray(image) + generator.normal(0, 4, (96, 96, 3))
            folder = (dataset if number < 12 else testing) / f"class_{label:02d}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    copy_smaller(testing / "class_03/13.png", dataset / "class_03/leak.jpg")
    assert count_overlap(dataset, testing) > 0
    report = audit(dataset, [testing])
    assert dataset / "class_03/leak.jpg" in {each.path for each in report.leaks}
    assert fix(report) == len(report.duplicates) < 100
    assert min(len(image_files(dataset / f"class_{label:02d}")) for label in range(30)) >= 6
    assert count_overlap(dataset, testing) == 0
    assert audit(dataset, [testing]).duplicates == []


def test_duplicates_found_after_others_are_removed_are_moved(folders, monkeypatch):
    dataset, testing = folders
    chain = [dataset / "Axe" / f"{number}.jpg" for number in (0, 1, 2)]

    def find(images, *_):
        indices = {image.path: index for index, image in enumerate(images)}
        pair = chain[:2] if chain[1] in indices else chain[::2]
        known = sorted(indices[path] for path in pair if path in indices)
        return Links([Link(*known, LinkKind.NEAR_DUPLICATE)] if len(known) == 2 else [], [])

    monkeypatch.setattr("dataset.groups.find_links", find)
    assert len(audit(dataset, [testing]).duplicates) == 2


def test_fix_refuses_to_move_more_than_half_of_a_class(folders, tmp_path):
    dataset, testing = folders
    for number in range(6):
        image = Image.open(testing / "Book" / f"{number}.jpg")
        image.resize((image.width - 8, image.height - 6)).save(dataset / "Book" / f"leak_{number}.jpg")
    Image.open(testing / "Book/0.jpg").save(dataset / "Book/leak_6.jpg", quality=60)
    before = digests(tmp_path)
    result = start("dataset/audit.py", "--testing-dir", "testing", "--fix", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == (
        "error: dataset/Book: --fix would move 7 of its 13 images, which resemble others; nothing was moved: look at "
        "the report, without --fix, and move them by hand\n"
    )
    assert "leaks: 7" in result.stdout
    after = {name: digest for name, digest in digests(tmp_path).items() if ".cache" not in name}
    assert {name: digest for name, digest in after.items() if name in before} == before
    (dataset / "Book/leak_6.jpg").unlink()
    assert start("dataset/audit.py", "--testing-dir", "testing", "--fix", cwd=tmp_path).returncode == 1
    assert len(image_files(dataset / "Book")) == 6


class TestProgram:
    def test_clean_dataset(self, folders, tmp_path):
        result = start("dataset/audit.py", "--dataset-dir", "dataset", "--testing-dir", "testing", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines()[:2] == ["dataset: 6 Axe, 6 Book", "testing: 6 Axe, 6 Book"]
        assert "leaks: 0" in result.stdout

    def test_fix_makes_the_dataset_clean(self, folders, tmp_path):
        dataset, testing = folders
        shutil.copy(testing / "Book/3.jpg", dataset / "Book/leak.jpg")
        arguments = ("dataset/audit.py", "--dataset-dir", "dataset", "--testing-dir", "testing")
        found = start(*arguments, "--json", cwd=tmp_path)
        assert found.returncode == 1
        twins = json.loads(found.stdout)["twins"]
        assert twins == [
            {
                "path": "dataset/Book/leak.jpg",
                "of": "testing/Book/3.jpg",
                "kind": "leak",
                "exact": True,
                "link": "pixels",
            }
        ]
        assert (dataset / "Book/leak.jpg").exists()
        fixed = start(*arguments, "--fix", cwd=tmp_path)
        assert fixed.returncode == 1
        assert "dataset/Book/leak.jpg has the same pixels as testing/Book/3.jpg" in fixed.stdout
        assert fixed.stderr == "1 file moved to rejected/\n"
        assert start(*arguments, cwd=tmp_path).returncode == 0

    @pytest.mark.parametrize(
        "arguments",
        [("--dataset-dir", "nowhere"), ("--testing-dir", "dataset/Axe"), ("--fixx",)],
    )
    def test_invalid_arguments(self, folders, tmp_path, arguments):
        result = start("dataset/audit.py", "--dataset-dir", "dataset", *arguments, cwd=tmp_path)
        assert result.returncode == 2
        assert result.stderr.startswith("error: ")
        assert len(result.stderr.splitlines()) == 1

    @pytest.mark.parametrize("flags", [(), ("--fix",)])
    def test_missing_test_folder(self, folders, tmp_path, flags):
        shutil.rmtree(tmp_path / "testing")
        result = start("dataset/audit.py", "--testing-dir", "testing", *flags, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith("dataset: 6 Axe, 6 Book\nunreadable files: 0\n")
        assert result.stderr == "note: there is no folder testing, so nothing is compared with it\n"
        assert not (tmp_path / "testing").exists()

    @pytest.mark.parametrize("flags", [(), ("--fix",)])
    def test_test_folder_with_other_classes(self, folders, tmp_path, flags):
        (tmp_path / "testing/Book").rename(tmp_path / "testing/Hammer")
        (tmp_path / "dataset/Axe/bad.jpg").write_text("bad")
        result = start("dataset/audit.py", "--testing-dir", "testing", *flags, cwd=tmp_path)
        assert result.returncode == 2
        assert result.stderr == (
            "error: testing/Hammer is a class that dataset does not have: name the folder that belongs to it with "
            "--testing-dir (without a value: compare with none)\n"
        )
        assert (tmp_path / "dataset/Axe/bad.jpg").exists()
        assert start("dataset/audit.py", "--testing-dir", cwd=tmp_path).returncode == 1


def placeholder():
    image = Image.new("P", (120, 90), 0)
    image.putpalette([240, 240, 240, 120, 120, 120])
    ImageDraw.Draw(image).text((60, 45), "image not found", fill=1, anchor="mm")
    return image


def test_placeholder_image_is_reported_and_not_moved(folders, tmp_path):
    dataset, testing = folders
    placeholder().save(dataset / "Book/lost.gif")
    report = audit(dataset, [testing])
    assert (report.poor, report.usual_flaws, report.clean) == ({dataset / "Book/lost.gif": [BLANK]}, [], True)
    assert "images of low quality: 1" in next(summarise(report))
    assert fix(report) == 0
    printed = start("dataset/audit.py", "--testing-dir", "testing", "--fix", cwd=tmp_path)
    assert printed.returncode == 0
    assert (
        "images of low quality: 1 (review them: --fix does not move them)\n"
        "  dataset/Book/lost.gif: little information\n"
    ) in printed.stdout
    assert (dataset / "Book/lost.gif").exists()


def test_flaw_that_is_usual_in_a_class_is_summarised(folders):
    """All six images of the class are dark."""
    dataset, _ = folders
    for path in image_files(dataset / "Axe"):
        with Image.open(path) as image:
            dark = image.point(lambda value: value // 4)
        dark.save(path)
    report = audit(dataset, [])
    assert (report.poor, report.clean) == ({}, True)
    assert [line for line in describe(report) if DARK in line] == [
        f"  {dataset}/Axe: very dark: 6 of 6 images, usual in this class, not listed"
    ]
    assert to_json(report)["poor_as_a_rule"] == [{"folder": f"{dataset}/Axe", "flaw": DARK, "count": 6, "images": 6}]


def test_class_names_in_different_unicode_forms(folders):
    """As macOS and Linux write them, or with a trailing space."""
    dataset, testing = folders
    for folder, spelled in ((dataset, "K\u00e4se"), (testing, "Ka\u0308se ")):
        (folder / "Axe").rename(folder / spelled)
    copy_smaller(dataset / "K\u00e4se/1.jpg", dataset / "K\u00e4se/smaller.jpg")
    copy_smaller(testing / "Ka\u0308se /1.jpg", testing / "Ka\u0308se /smaller.jpg")
    report = audit(dataset, [testing])
    assert [set(counts) for counts in report.images.values()] == [{"Book", "K\u00e4se"}] * 2
    assert report.images[testing]["K\u00e4se"] == 7
    assert {each.kind for each in report.duplicates} == {DUPLICATE}
    assert report.shift[testing]


def test_fix_moves_any_number_of_identical_copies(tmp_path):
    for label in "AB":
        for number in range(4):
            for copy in range(4):
                path = tmp_path / label / f"{number}_{copy}.png"
                path.parent.mkdir(exist_ok=True)
                noise = np.random.default_rng([ord(label), number]).integers(0, 256, (6, 6, 3), dtype=np.uint8)
                Image.fromarray(noise).resize((60, 48), Image.Resampling.BICUBIC).save(path)
    assert fix(audit(tmp_path, [])) == 24
    assert audit(tmp_path, []).clean


def test_16_bit_files_with_fewer_bits_are_noted(folders):
    dataset, testing = folders
    generator = np.random.default_rng(0)
    for folder, most in ((dataset, 4096), (testing, 65536)):
        for path in (path for label in ("Axe", "Book") for path in image_files(folder / label)):
            path.unlink()
            blocks = generator.integers(0, most, (6, 6)).repeat(8, axis=0).repeat(8, axis=1)
            Image.fromarray(blocks.astype(np.uint16)).save(path.with_suffix(".png"))
    report = audit(dataset, [testing])
    assert report.notes == [
        f"16-bit files of {dataset} hold 12-bit values: 4095 is white, not 65535",
        f"{testing}: 12 of 12 16-bit files have values above 4095, which become white",
    ]
    assert report.notes[0] in list(describe(report))
    assert audit(testing, []).notes == []
    assert audit(testing, [dataset]).notes == [
        f"{dataset}: 12 of 12 16-bit files use less than 16 bits: a different bit depth?"
    ]
