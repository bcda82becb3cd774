"""Images that belong together are in one group, for whatever reason; others are not."""

import io
import re
import shutil
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from dataset import groups
from dataset.array_images import with_inversions
from dataset.examining import examine_image
from dataset.folders import image_files, read_folder
from dataset.groups import Link, LinkKind, find_groups, find_links, number_groups
from dataset.sample import draw_numbered
from dataset.tables import OPEN_IMAGES, TESTING_BATCH, write_rows


def draw(seed, size=(60, 48)):
    pixels = np.random.default_rng([5, seed]).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def patterned(seed, pattern=0):
    """Draw an image of a dense class: a pattern with noise."""
    colours = np.random.default_rng([6, pattern]).integers(0, 256, (4, 4, 3)).repeat(8, 0).repeat(8, 1)
    noise = np.random.default_rng([7, pattern, seed]).integers(-60, 60, (32, 32, 3))
    return Image.fromarray((colours + noise).clip(0, 255).astype(np.uint8))


def similar(seed):
    """Draw an image of a class of near-duplicates: a scene with a little noise."""
    noise = np.random.default_rng([8, seed]).normal(0, 6, (48, 60, 3))
    return Image.fromarray((np.asarray(draw(0)) + noise).clip(0, 255).astype(np.uint8))


def with_object(label, seed):
    """Draw a small object, coloured by class, on the background that all classes share."""
    generator = np.random.default_rng([9, label, seed])
    image = draw(1, (96, 96))
    left, top = generator.integers(5, 75, 2).tolist()
    colour = tuple(np.random.default_rng([10, label]).integers(0, 256, 3).tolist())
    ImageDraw.Draw(image).ellipse([left, top, left + 16, top + 16], fill=colour)
    noise = generator.normal(0, 4, (96, 96, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def recompress(image, quality=70):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def crop(image, part, step):
    """Return a part of the width and height, from the upper left (step 0) to the lower right (step 12)."""
    left, top = (round(side * (1 - part) * step / 12) for side in image.size)
    return image.crop((left, top, left + round(image.width * part), top + round(image.height * part)))


def count_groups(images, labels, found):
    """Count the groups of each class."""
    numbers = number_groups(len(images), found.links)
    return {
        label: len({n for n, own in zip(numbers.tolist(), labels, strict=True) if own == label}) for label in labels
    }


def save(image, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def look(images):
    return [examine_image(str(index), image) for index, image in enumerate(images)]


def number_by_name(folders, found):
    """Return the number of each image's group by folder, class folder and file name."""
    return {
        path.relative_to(folder.directory.parent).as_posix(): int(number)
        for folder, numbers in zip(folders, found.numbers, strict=True)
        for path, number in zip(folder.paths, numbers, strict=True)
    }


class TestNumbers:
    def test_links_are_transitive(self):
        links = [Link(0, 3, LinkKind.PIXELS), Link(3, 4, LinkKind.PHOTOGRAPH), Link(1, 5, LinkKind.AUGMENTED)]
        assert number_groups(7, links).tolist() == [0, 1, 2, 0, 0, 1, 3]

    def test_unlinked_images_have_groups_of_their_own(self):
        assert number_groups(0, []).tolist() == []
        assert number_groups(2, []).tolist() == [0, 1]

    @given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
    def test_linked_images_share_a_number_and_numbers_have_no_gaps(self, pairs):
        numbers = number_groups(20, [Link(*pair, LinkKind.PIXELS) for pair in pairs])
        assert all(numbers[first] == numbers[second] for first, second in pairs)
        assert set(numbers.tolist()) == set(range(numbers.max() + 1))
        assert len(set(numbers.tolist())) >= 20 - len(pairs)


class TestLinks:
    def test_all_kinds_of_links(self):
        images = [draw(0), draw(0), draw(1), draw(1, (90, 72)), draw(2), draw(3)]
        found = find_links(look(images), ["A", "B", "A", "A", "B", "A"], [None, None, None, None, "photo", "photo"])
        assert found.links == [
            Link(0, 1, LinkKind.PIXELS),
            Link(2, 3, LinkKind.NEAR_DUPLICATE),
            Link(4, 5, LinkKind.PHOTOGRAPH),
        ]
        assert found.notes == []

    def test_identical_pixels_in_different_formats(self, tmp_path):
        paths = [save(draw(0), tmp_path / name) for name in ("a.png", "b.bmp")]
        images = [examine_image(path, Image.open(path)) for path in paths]
        assert find_links(images, ["A", "A"]).links == [Link(0, 1, LinkKind.PIXELS)]

    def test_identical_pixels_without_contrast(self):
        images = [Image.new("RGB", size, "red") for size in ((20, 20), (20, 20), (40, 10))]
        assert find_links(look(images), ["A", "A", "A"]).links == [Link(0, 1, LinkKind.PIXELS)]

    def test_many_identical_images_have_few_links(self):
        found = find_links(look([draw(0)] * 200 + [draw(1)]), ["A"] * 201)
        assert len(found.links) < 1000
        assert len(set(number_groups(201, found.links).tolist())) == 2

    def test_many_copies_of_two_near_duplicates_have_few_links(self):
        """2,000 copies of each would have 4,000,000 pairs."""
        one, other, third = look([draw(0), draw(0, (90, 72)), draw(1)])
        tracemalloc.start()
        found = find_links([one] * 2000 + [other] * 2000 + [third] * 5000, ["A"] * 9000)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert [link.kind for link in found.links].count(LinkKind.NEAR_DUPLICATE) == 1
        assert len(set(number_groups(9000, found.links).tolist())) == 2
        assert peak < 30e6

    def test_a_burst_in_a_small_class_is_not_dense(self):
        images = [draw(seed) for seed in range(20)] + [draw(0, (60 + 2 * step, 48)) for step in range(1, 7)]
        found = find_links(look(images), ["A"] * len(images))
        assert found.notes == []
        assert len(set(number_groups(len(images), found.links).tolist())) == 20

    def test_a_burst_of_a_drawing_is_one_group(self):
        self.check_burst([draw_numbered("Axe", 5, False, number)[0] for number in range(98)])

    def test_a_burst_of_a_photograph_is_one_group(self, photographs):
        self.check_burst([Image.open(path) for path in image_files(photographs / "open_images/Axe")[:98]])

    def check_burst(self, images):
        images = images + [crop(images[0], 0.92, step) for step in range(13)]
        found = find_links(look(images), ["Axe"] * len(images))
        assert found.notes == []
        assert len(set(number_groups(len(images), found.links)[98:].tolist())) == 1


class TestDenseClasses:
    @pytest.mark.parametrize(("classes", "count"), [(40, 6), (30, 12), (2, 6), (3, 60)])
    def test_classes_on_one_background_do_not_become_one_group(self, classes, count):
        images = [with_object(label, seed) for label in range(classes) for seed in range(count)]
        labels = [str(label) for label in range(classes) for _ in range(count)]
        copies = [(3, recompress(images[3])), (4, images[4].resize((70, 70))), (count, recompress(images[count], 50))]
        total = len(images)
        images += [copy for _, copy in copies]
        labels += [labels[index] for index, _ in copies]
        found = find_links(look(images), labels)
        assert min(count_groups(images, labels, found).values()) >= count / 2
        pairs = {link[:2] for link in found.links}
        true = {(index, total + number) for number, (index, _) in enumerate(copies)}
        assert true <= pairs
        assert len(pairs - true) < total / 2  # objects at nearly the same position
        assert all(labels[first] == labels[second] for first, second in pairs)  # not by equal greys
        assert len(found.notes) == min(classes, 6)
        if classes > 6:
            assert found.notes[-1] == f"{classes - 5} more classes whose images resemble one another"

    def test_chains_of_near_duplicates_do_not_join_a_class(self):
        """Frames of one movement: each resembles only the next ones."""
        scene = draw(1, (2000, 400))
        images = [scene.crop((30 * step, 0, 30 * step + 200, 400)) for step in range(60)]
        others = [draw(100 + seed) for seed in range(40)]
        found = find_links(look(images + others), ["frames"] * 60 + ["others"] * 40)
        (note,) = found.notes
        assert re.match(r"class frames: a chain of near-duplicates contains \d+ of 60 images", note)
        groups_of = count_groups(images + others, ["frames"] * 60 + ["others"] * 40, found)
        assert groups_of["frames"] >= 2
        assert groups_of["others"] == 40

    def test_chains_through_other_classes_count(self, monkeypatch):
        chain = [(index, index + 1) for index in range(29)]
        monkeypatch.setattr(groups, "find_near_duplicates", lambda *_: chain)
        images = [draw(seed) for seed in range(60)]
        labels = [str(index % 5) if index < 30 else str(5 + index % 5) for index in range(60)]
        found = find_links(look(images), labels)
        assert found.links == []
        assert [note.split()[1][0] for note in found.notes] == list("01234")

    @pytest.mark.parametrize("make", [patterned, similar])
    @pytest.mark.parametrize("many", [5, 500])
    def test_only_copies_are_linked(self, make, many, tmp_path, monkeypatch):
        monkeypatch.setattr(groups, "_MANY", many)
        images = [make(seed) for seed in range(120)] + [draw(seed) for seed in range(30)]
        copies = [images[3], Image.open(save(images[5], tmp_path / "copy.jpg", quality=75)), draw(4, (80, 64))]
        labels = ["dense"] * 120 + ["other"] * 30 + ["dense", "dense", "other"]
        found = find_links(look(images + copies), labels)
        expected = [
            Link(3, 150, LinkKind.PIXELS),
            Link(5, 151, LinkKind.NEAR_DUPLICATE),
            Link(124, 152, LinkKind.NEAR_DUPLICATE),
        ]
        assert found.links == expected
        if make is similar or many == 5:  # the patterned images are only coarsely alike
            (note,) = found.notes
            assert re.match(
                r"class dense: \d+% of random pairs of its images are (near-duplicates|coarsely alike)", note
            )

    def test_copies_in_another_class_are_found(self, tmp_path, monkeypatch):
        monkeypatch.setattr(groups, "_MANY", 5)
        images = [patterned(seed, pattern) for pattern in (0, 1) for seed in range(60)]
        copies = [patterned(2), Image.open(save(patterned(7), tmp_path / "copy.jpg", quality=80))]
        found = find_links(look(images + copies), ["0"] * 60 + ["1"] * 62)
        assert {Link(2, 120, LinkKind.PIXELS), Link(7, 121, LinkKind.NEAR_DUPLICATE)} <= set(found.links)
        assert set(found.links) - {Link(120, 121, LinkKind.NEAR_DUPLICATE)} == set(found.links[:2])  # unlike that class
        assert len(found.notes) == 2

    def test_only_identical_pixels_count_if_even_close_copies_join_a_class(self, monkeypatch):
        """Frames of one movement: each is much closer to the next than to the others."""
        chain = [(index, index + 1) for index in range(59)]
        monkeypatch.setattr(groups, "find_copies_in_dense_classes", lambda *_: chain)
        found = find_links(look([*map(similar, range(60)), similar(0)]), ["A"] * 61)
        assert found.links == [Link(0, 60, LinkKind.PIXELS)]
        (note,) = found.notes
        assert note.endswith("only identical pixels count as duplicates")

    @settings(max_examples=5, deadline=None)
    @given(order=st.permutations(range(62)))
    def test_order_of_images_does_not_matter(self, order):
        images = look([*map(similar, range(60)), similar(7), similar(9).resize((50, 40))])
        expected = {frozenset(link[:2]) for link in find_links(images, ["A"] * 62).links}
        found = find_links([images[index] for index in order], ["A"] * 62)
        assert {frozenset((order[link.first], order[link.second])) for link in found.links} == expected
        assert frozenset((7, 60)) in expected


class TestFolders:
    def test_leaked_test_images_share_a_group_with_training_images(self, tmp_path):
        for number in range(4):
            save(draw(number), tmp_path / "train/A" / f"{number}.png")
            save(draw(10 + number), tmp_path / "train/B" / f"{number}.png")
            save(draw(20 + number), tmp_path / "test/A" / f"{number}.png")
        save(draw(20), tmp_path / "train/B/same.png")
        save(draw(21, (80, 64)), tmp_path / "train/A/near.jpg", quality=70)
        (tmp_path / "train/A/bad.jpg").write_text("bad")
        folders = [read_folder(tmp_path / "train"), _read_test_folder(tmp_path / "test")]
        found = find_groups(folders, None)
        numbers = number_by_name(folders, found)
        assert numbers["train/B/same.png"] == numbers["test/A/0.png"]
        assert numbers["train/A/near.jpg"] == numbers["test/A/1.png"]
        assert len(set(numbers.values())) == len(numbers) - 2
        assert [array.dtype for array in found.numbers] == [np.int64] * 2

    def test_augmented_images_are_in_the_group_of_their_source(self, tmp_path, monkeypatch):
        save_training_set(tmp_path)
        save(draw(5), tmp_path / "train/A/0.jpg")
        save(draw(6), tmp_path / "train/A/1.jpg")
        for name in ("0_aug_0001", "0_aug_0002", "2_aug_0003", "gone_aug_0004", "gone_aug_0005", "odd"):
            save(draw(12), tmp_path / "train/A_augmented" / f"{name}.jpg")  # resembles an image of the other class
        looked = []
        original = groups.examine
        monkeypatch.setattr(groups, "examine", lambda paths, *how: looked.extend(paths) or original(paths, *how))
        folder = read_folder(tmp_path / "train", with_augmented=True)
        numbers = number_by_name([folder], find_groups([folder], None))
        together = ["A/0.png", "A/0.jpg", "A_augmented/0_aug_0001.jpg", "A_augmented/0_aug_0002.jpg"]
        assert len({numbers[f"train/{name}"] for name in together}) == 1
        assert numbers["train/A/2.png"] == numbers["train/A_augmented/2_aug_0003.jpg"]
        assert numbers["train/A/1.png"] == numbers["train/A/1.jpg"]  # although nothing was made from them
        assert numbers["train/A_augmented/gone_aug_0004.jpg"] == numbers["train/A_augmented/gone_aug_0005.jpg"]
        assert list(numbers.values()).count(numbers["train/A_augmented/odd.jpg"]) == 1
        assert not any(path.parent.name == "A_augmented" for path in looked)

    def test_augmented_images_do_not_change_the_groups_of_originals(self, tmp_path):
        save_training_set(tmp_path)
        save(draw(5), tmp_path / "train/A/0.jpg")
        save(draw(6), tmp_path / "train/A/7.jpg")
        save(draw(7), tmp_path / "test/A/7.png")
        save(draw(8), tmp_path / "test/A/2.png")
        write_rows(tmp_path / "test" / TESTING_BATCH, ("class", "file"), [{"class": "A", "file": "7.png"}])
        for name in ("0_aug_0001", "1_aug_0002", "7_aug_0003"):
            save(draw(12), tmp_path / "train/A_augmented" / f"{name}.jpg")
        test = _read_test_folder(tmp_path / "test")
        numbers = []
        for with_augmented in (False, True):
            folders = [read_folder(tmp_path / "train", with_augmented), test]
            found = number_by_name(folders, find_groups(folders, None))
            originals = {name: number for name, number in found.items() if "augmented" not in name}
            numbers.append([list(originals.values()).index(number) for number in originals.values()])
        assert numbers[0] == numbers[1]
        assert originals["train/A/0.png"] == originals["train/A/0.jpg"]
        assert originals["train/A/7.jpg"] == originals["test/A/7.png"]
        assert len(set(originals.values())) == len(originals) - 2

    def test_inversions_of_an_archive(self, tmp_path):
        arrays = np.stack([np.asarray(draw(seed).convert("L")) for seed in (0, 1, 2, 0)])
        np.savez(tmp_path / "set.npz", images=arrays, labels=np.array(["A", "A", "B", "B"]))
        folder = with_inversions(read_folder(tmp_path / "set.npz"))
        assert find_groups([folder], None).numbers[0].tolist() == [0, 1, 2, 0] * 2

    def test_an_archive_with_an_unreadable_image(self, tmp_path):
        arrays = np.stack([np.asarray(draw(seed).convert("L")) / 255 for seed in (0, 1, 0)])
        arrays[1] = np.nan
        np.savez(tmp_path / "set.npz", images=arrays, labels=np.array([1, 1, 2]))
        assert find_groups([read_folder(tmp_path / "set.npz")], None).numbers[0].tolist() == [0, 1, 0]

    def test_crops_of_one_photograph_are_one_group(self, tmp_path):
        boxes = {"A/0.jpg": "p", "A/1.jpg": "q", "B/0.jpg": "q", "B/1.jpg": "r", "A/2.jpg": "r", "B/2.jpg": "s"}
        train, test, other = tmp_path / "train", tmp_path / "test", tmp_path / "other"
        for number, file in enumerate(boxes):
            save(draw(number), (test if file == "A/2.jpg" else train) / file)
        write_rows(train / OPEN_IMAGES, ("file", "image_id"), [{"file": f, "image_id": p} for f, p in boxes.items()])
        write_rows(test / TESTING_BATCH, ("class", "file"), [{"class": "A", "file": "2.jpg"}])
        save(draw(50), test / "B/2.jpg")  # has the name of a training image, but was not moved from there
        save(draw(51), other / "A/9.jpg")
        write_rows(other / OPEN_IMAGES, ("file", "image_id"), [{"file": "A/9.jpg", "image_id": "p"}])
        folders = [read_folder(train), _read_test_folder(test), _read_test_folder(other)]
        numbers = number_by_name(folders, find_groups(folders, None))
        assert numbers["train/A/1.jpg"] == numbers["train/B/0.jpg"]
        assert numbers["train/B/1.jpg"] == numbers["test/A/2.jpg"]
        assert numbers["train/A/0.jpg"] == numbers["other/A/9.jpg"]
        assert len(set(numbers.values())) == len(numbers) - 3

    def test_tables_and_folders_may_spell_names_differently(self, tmp_path):
        """Composed or decomposed Unicode, as on Linux and macOS, and a space at the end of a class."""
        train, test = tmp_path / "train", tmp_path / "test"
        composed, decomposed = "K\u00e4se/K\u00e4se 1.jpg", "Ka\u0308se /Ka\u0308se 1.jpg"
        for number, name in enumerate((decomposed, "B/1.jpg", "B/2.jpg")):
            save(draw(number), train / name)
        save(draw(9), test / decomposed.replace("1", "2"))
        rows = [(composed, "p"), ("B/1.jpg", "p"), (composed.replace("1", "2"), "q"), ("B/2.jpg", "q")]
        write_rows(train / OPEN_IMAGES, ("file", "image_id"), [{"file": f, "image_id": i} for f, i in rows])
        write_rows(test / TESTING_BATCH, ("class", "file"), [{"class": "K\u00e4se", "file": "K\u00e4se 2.jpg"}])
        folders = [read_folder(train), _read_test_folder(test)]
        numbers = number_by_name(folders, find_groups(folders, None))
        assert numbers[f"train/{decomposed}"] == numbers["train/B/1.jpg"]
        assert numbers[f"test/{decomposed.replace('1', '2')}"] == numbers["train/B/2.jpg"]
        assert numbers["train/B/1.jpg"] != numbers["train/B/2.jpg"]

    def test_augmented_images_of_a_test_image(self, tmp_path):
        """The source was moved to the test folder; the augmented image remained."""
        save_training_set(tmp_path)
        save(draw(7), tmp_path / "test/A/7.png")
        save(draw(8), tmp_path / "train/A_augmented/7_aug_0001.jpg")
        write_rows(tmp_path / "test" / TESTING_BATCH, ("class", "file"), [{"class": "A", "file": "7.png"}])
        folders = [read_folder(tmp_path / "train", with_augmented=True), _read_test_folder(tmp_path / "test")]
        numbers = number_by_name(folders, find_groups(folders, None))
        assert numbers["train/A_augmented/7_aug_0001.jpg"] == numbers["test/A/7.png"]


def save_training_set(directory):
    for number in range(3):
        save(draw(number), directory / "train/A" / f"{number}.png")
        save(draw(10 + number), directory / "train/B" / f"{number}.png")


def _read_test_folder(directory):
    """Read a folder after adding a second class, which `read_folder` requires."""
    filler = directory / "zz"
    filler.mkdir(parents=True, exist_ok=True)
    save(draw(sum(map(ord, directory.name)) + 1000), filler / f"{directory.name}.png")
    return read_folder(directory)


COPIES = {
    "same": lambda image, path: save(image, path.with_suffix(".bmp")),
    "recompressed": lambda image, path: save(image, path.with_suffix(".jpg"), quality=70),
    "smaller": lambda image, path: save(image.resize((50, 40)), path.with_suffix(".png")),
    "larger": lambda image, path: save(image.resize((90, 72)), path.with_suffix(".jpg"), quality=85),
}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    originals=st.integers(9, 16),
    copies=st.lists(
        st.tuples(
            st.integers(0, 8), st.sampled_from(sorted(COPIES)), st.sampled_from(["train/A", "train/B", "test/B"])
        ),
        max_size=6,
    ),
    boxes=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=3),
    augmented=st.lists(st.integers(0, 8), max_size=4),
)
def test_groups_are_exactly_the_linked_images(tmp_path, originals, copies, boxes, augmented):
    """Links are copies, crops of one photograph, and augmentation."""
    place = tmp_path / "folders"
    shutil.rmtree(place, ignore_errors=True)
    linked = []
    for number in range(originals):
        save(draw(number), place / "train/A" / f"{number}.png")
        save(draw(100 + number), place / "train/B" / f"{number}.png")
        save(draw(200 + number), place / "test/B" / f"{number}.png")
    for serial, (number, kind, folder) in enumerate(copies):
        path = COPIES[kind](draw(number), place / folder / f"copy_{serial}")
        linked.append((f"train/A/{number}.png", path.relative_to(place).as_posix()))
    rows = []
    for serial, (number, other) in enumerate(boxes):
        pair = (f"A/{number}.png", f"B/{other}.png")
        if not {row["file"] for row in rows} & set(pair):
            rows += [{"file": file, "image_id": f"photograph {serial}"} for file in pair]
            linked.append((f"train/{pair[0]}", f"train/{pair[1]}"))
    write_rows(place / "train" / OPEN_IMAGES, ("file", "image_id"), rows)
    for serial, number in enumerate(augmented):
        path = save(draw(300 + serial), place / "train/A_augmented" / f"{number}_aug_{serial:04d}.jpg")
        linked.append((f"train/A/{number}.png", path.relative_to(place).as_posix()))
    folders = [read_folder(place / "train", with_augmented=True), _read_test_folder(place / "test")]
    numbers = number_by_name(folders, find_groups(folders, None))
    names = {name: at for at, name in enumerate(numbers)}
    expected = number_groups(len(names), [Link(names[one], names[other], "") for one, other in linked])
    assert list(numbers.values()) == expected.tolist()
    assert len(numbers) == sum(len(image_files(path)) for path in place.glob("*/*") if path.is_dir())
