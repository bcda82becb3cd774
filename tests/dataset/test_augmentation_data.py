"""Tests of reducing, splitting and augmenting classes."""

import shutil
import uuid
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from common import UserError
from dataset import augmentation_data, moving
from dataset.augmentation_data import (
    ALL,
    MINORITY,
    add_extra_testing,
    augment,
    create_augmented_data,
    create_testing_batch,
    plan_augmentation,
    reduce_classes,
)
from dataset.examining import examine
from dataset.folders import image_files, source_stem
from dataset.reading import read_image
from dataset.tables import read_rows, write_rows
from helpers import digests


def noise(size=(40, 30), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def save_as(image, path, kind):
    """Save an image in one of the formats that users have."""
    exif = Image.Exif()
    exif[0x0112] = 6
    save = {
        "jpg": lambda: image.save(path.with_suffix(".jpg")),
        "grey": lambda: image.convert("L").save(path.with_suffix(".jpg")),
        "turned": lambda: image.save(path.with_suffix(".jpg"), exif=exif),
        "cmyk": lambda: image.convert("CMYK").save(path.with_suffix(".jpg")),
        "palette": lambda: image.convert("P").save(path.with_suffix(".png")),
        "alpha": lambda: image.convert("RGBA").save(path.with_suffix(".png")),
        "deep": lambda: Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(
            path.with_suffix(".png")
        ),
        "gif": lambda: image.save(path.with_suffix(".gif")),
        "webp": lambda: image.save(path.with_suffix(".webp"), lossless=True),
        "array": lambda: np.save(path.with_suffix(".npy"), np.asarray(image.convert("L")) / 255),
        "broken": lambda: path.with_suffix(".jpg").write_bytes(b"no image"),
    }
    save[kind]()


KINDS = ("jpg", "grey", "turned", "cmyk", "palette", "alpha", "deep", "gif", "webp", "array")


@pytest.fixture
def make_dataset(tmp_path):
    """Make a dataset without near-duplicates."""

    def make(sizes, kinds=KINDS, name="dataset"):
        seed = 0
        for label, count in sizes.items():
            (tmp_path / name / label).mkdir(parents=True)
            for number in range(count):
                save_as(noise(seed=seed), tmp_path / name / label / f"{number:04d}", kinds[seed % len(kinds)])
                seed += 1
        return tmp_path / name

    return make


@pytest.fixture
def held_out(tmp_path):
    return tmp_path / "testing"


def copy_noise(seed, path, width=60):
    """Save a near-duplicate of the image with this seed."""
    noise((width, 45), seed).save(path, quality=60)


def images_in(directory):
    return sorted(digest for name, digest in digests(directory).items() if not name.endswith(".csv"))


def names_in(directory):
    return {path.name for path in image_files(directory)}


def counts_in(directory, *names):
    return [len(image_files(directory / name)) for name in names]


def stop_after(monkeypatch, module, name, count):
    """Make a function of a module raise KeyboardInterrupt after `count` calls."""
    original, done = getattr(module, name), []

    def limited(*arguments):
        if len(done) == count:
            raise KeyboardInterrupt
        done.append(original(*arguments))

    monkeypatch.setattr(module, name, limited)


class TestReduce:
    def test_surplus_images_are_moved(self, make_dataset):
        dataset = make_dataset({"A": 12, "B": 3})
        before = images_in(dataset)
        assert reduce_classes(dataset, 5) == {"A": 7, "B": 0}
        assert counts_in(dataset, "A", "B", "left_out/A") == [5, 3, 7]
        assert images_in(dataset) == before
        assert len(read_rows(dataset / "left_out/log.csv", ["moved_to"])) == 7
        assert reduce_classes(dataset, 5) == {"A": 0, "B": 0}

    def test_seed_decides_which_images_are_moved(self, make_dataset):
        kept = []
        for seed in (0, 1):
            dataset = make_dataset({"A": 12, "B": 3}, name=str(seed))
            reduce_classes(dataset, 5, seed)
            kept.append(names_in(dataset / "A"))
        assert kept[0] != kept[1]

    def test_interrupted_reduction_gives_identical_results(self, make_dataset, monkeypatch):
        undisturbed, stopped = (make_dataset({"A": 12, "B": 3}, name=name) for name in "us")
        reduce_classes(undisturbed, 5)
        stop_after(monkeypatch, moving, "move_file", 3)
        with pytest.raises(KeyboardInterrupt):
            reduce_classes(stopped, 5)
        monkeypatch.undo()
        reduce_classes(stopped, 5)
        assert digests(stopped) == digests(undisturbed)


class TestTestingBatch:
    def test_images_are_moved_once(self, make_dataset, held_out):
        dataset = make_dataset({"A": 9, "B": 12})
        before = images_in(dataset)
        assert create_testing_batch(dataset, held_out, 4) == {"A": 4, "B": 4}
        assert counts_in(dataset, "A", "B") + counts_in(held_out, "A", "B") == [5, 8, 4, 4]
        assert sorted(images_in(dataset) + images_in(held_out)) == before
        after = digests(held_out)
        assert create_testing_batch(dataset, held_out, 6, seed=3) == {"A": 0, "B": 0}
        assert digests(held_out) == after

    def test_deleted_test_images_are_reported(self, make_dataset, held_out, caplog):
        dataset = make_dataset({"A": 9, "B": 12})
        create_testing_batch(dataset, held_out, 4)
        assert caplog.messages == []
        shutil.rmtree(held_out / "A")
        assert create_testing_batch(dataset, held_out, 4) == {"A": 0, "B": 0}
        (message,) = caplog.messages
        assert message.startswith("A has none of its test images left")

    def test_class_with_test_images_keeps_them(self, make_dataset, held_out):
        (held_out / "A").mkdir(parents=True)
        noise(seed=99).save(held_out / "A" / "own.jpg")
        assert create_testing_batch(make_dataset({"A": 9, "B": 12}), held_out, 4) == {"A": 0, "B": 4}

    def test_no_near_duplicate_remains_in_training(self, make_dataset, held_out):
        dataset = make_dataset({"A": 8, "B": 8}, kinds=("jpg",))
        for number in range(4):
            copy_noise(number, dataset / "A" / f"copy_{number}.jpg")
        copy_noise(8, dataset / "A" / "label_conflict.jpg")
        assert create_testing_batch(dataset, held_out, 4)["A"] == 4
        assert names_in(held_out / "A") == {f"{number:04d}.jpg" for number in range(4, 8)}
        assert "0000.jpg" not in names_in(held_out / "B")

    def test_too_few_images_are_an_error(self, make_dataset, held_out):
        dataset = make_dataset({"A": 9, "B": 5})
        before = digests(dataset)
        with pytest.raises(UserError, match=r"B has 5 readable images in 5 groups.*--testing-per-class"):
            create_testing_batch(dataset, held_out, 4)
        assert digests(dataset) == before
        assert not held_out.exists()

    def test_small_rest_is_reported(self, make_dataset, held_out, caplog):
        create_testing_batch(make_dataset({"A": 8, "B": 7}), held_out, 4)
        (message,) = caplog.messages
        assert message.startswith("B keeps only 3 images to train on, beside 4 to test on: ")
        assert "--testing-per-class" in message

    def test_groups_are_drawn_if_single_images_are_too_few(self, make_dataset, held_out):
        dataset = make_dataset({"A": 7, "B": 9}, kinds=("jpg",))
        for number in range(4):
            copy_noise(number, dataset / "A" / f"copy_{number}.jpg")
        copy_noise(7, dataset / "A" / "label_conflict.jpg")  # as B/0000.jpg
        assert create_testing_batch(dataset, held_out, 7)["A"] == 7
        drawn = names_in(held_out / "A")
        assert {"0004.jpg", "0005.jpg", "0006.jpg"} <= drawn
        assert all((f"{number:04d}.jpg" in drawn) == (f"copy_{number}.jpg" in drawn) for number in range(4))
        assert "label_conflict.jpg" not in drawn

    def test_group_that_does_not_fit_is_not_split(self, make_dataset, held_out, caplog):
        dataset = make_dataset({"A": 3, "B": 9}, kinds=("jpg",))
        for number in range(3):
            for copy in range(2):
                copy_noise(number, dataset / "A" / f"copy_{number}_{copy}.jpg", width=60 + 4 * copy)
        for per_class in (5, 6):
            with pytest.raises(UserError, match=r"A has 9 readable images in 3 groups .* keep two groups"):
                create_testing_batch(dataset, held_out, per_class)
        assert caplog.messages == []
        assert create_testing_batch(dataset, held_out, 4) == {"A": 3, "B": 4}
        assert caplog.messages == ["A gets 3 test images: groups of near-duplicates are not split"]
        assert len({name[-5 if name[0] == "0" else 5] for name in names_in(held_out / "A")}) == 1
        assert create_testing_batch(dataset, held_out, 4) == {"A": 0, "B": 0}

    def test_odd_number_from_pairs_moves_one_less(self, make_dataset, held_out):
        dataset = make_dataset({"A": 6, "B": 9}, kinds=("jpg",))
        for number in range(6):
            copy_noise(number, dataset / "A" / f"copy_{number}.jpg")
        assert create_testing_batch(dataset, held_out, 5) == {"A": 4, "B": 5}

    def test_two_groups_remain(self, make_dataset, held_out):
        """There are ten single images and a pair. Two single images must remain, or the pair and one."""
        dataset = make_dataset({"A": 11, "B": 13}, kinds=("jpg",))
        copy_noise(0, dataset / "A/copy.jpg")
        assert create_testing_batch(dataset, held_out, 10) == {"A": 10, "B": 10}
        stay = names_in(dataset / "A")
        assert len(stay) == 2
        assert not stay & {"0000.jpg", "copy.jpg"}

    def test_crops_of_one_photograph_stay_together(self, make_dataset, held_out):
        dataset = make_dataset({"A": 8, "B": 8}, kinds=("jpg",))
        rows = [{"file": f"A/{number:04d}.jpg", "image_id": str(number // 2)} for number in range(6)]
        write_rows(dataset / "open_images.csv", ("file", "image_id"), [*rows, {"file": "B/0000.jpg", "image_id": "0"}])
        create_testing_batch(dataset, held_out, 4)
        drawn = {int(path.stem) for path in image_files(held_out / "A")}
        assert {6, 7} <= drawn
        assert drawn - {6, 7} in ({2, 3}, {4, 5})
        assert "0000.jpg" not in names_in(held_out / "B")

    @pytest.mark.parametrize("moves_done", [0, 5])
    def test_interrupted_split_gives_identical_results(self, make_dataset, monkeypatch, moves_done):
        undisturbed, stopped = (make_dataset({"A": 9, "B": 12}, name=f"{name}/dataset").parent for name in "us")
        create_testing_batch(undisturbed / "dataset", undisturbed / "testing", 4)
        stop_after(monkeypatch, augmentation_data, "move_file", moves_done)
        with pytest.raises(KeyboardInterrupt):
            create_testing_batch(stopped / "dataset", stopped / "testing", 4)
        monkeypatch.undo()
        create_testing_batch(stopped / "dataset", stopped / "testing", 4)
        assert digests(stopped) == digests(undisturbed)

    def test_extra_images_are_copied_once(self, make_dataset, held_out):
        extra = make_dataset({"A": 2, "B": 1}, name="extra")
        for end in "12":  # two of the longest names, which differ in the end only
            shutil.copy(extra / "B/0000.jpg", extra / "B" / ("x" * 250 + f"{end}.jpg"))
        before = digests(extra)
        assert add_extra_testing(extra, held_out) == {"A": 2, "B": 3}
        assert add_extra_testing(extra, held_out) == {"A": 0, "B": 0}
        assert digests(extra) == before
        assert images_in(held_out) == images_in(extra)
        noise(seed=50).save(extra / "A" / "0000.jpg")
        with pytest.raises(UserError, match="is another image"):
            add_extra_testing(extra, held_out)

    def test_extra_images_may_be_of_one_class(self, make_dataset, held_out):
        assert add_extra_testing(make_dataset({"A": 1}), held_out) == {"A": 1}


class TestPlan:
    @pytest.mark.parametrize(
        ("mode", "target", "expected"),
        [
            (MINORITY, None, (6, 0, 2)),
            (MINORITY, 8, (5, 0, 1)),
            (MINORITY, 12, (9, 3, 5)),
            (ALL, None, (3, 9, 7)),
            (ALL, 18, (3, 9, 7)),
            (ALL, 27, (6, 18, 14)),
            (ALL, 12, (1, 3, 2)),  # 1, 3 and 2.33
            (ALL, 15, (2, 6, 5)),  # 2, 6 and 4.67
            (ALL, 10, (1, 1, 1)),  # 0.33, 1 and 0.78: every class has one
        ],
    )
    def test_counts(self, mode, target, expected):
        assert tuple(plan_augmentation({"A": 3, "B": 9, "C": 7}, mode, target).values()) == expected

    def test_halves_are_rounded_up(self):
        assert plan_augmentation({"A": 4, "B": 5, "C": 3}, ALL, 8) == {"A": 2, "B": 3, "C": 2}
        assert plan_augmentation({"A": 10, "B": 5}, ALL, 15) == {"A": 5, "B": 3}

    @given(
        sizes=st.dictionaries(st.text("AB", min_size=1, max_size=3), st.integers(1, 2000), min_size=2, max_size=5),
        more=st.integers(1, 3000),
    )
    def test_all_gives_every_class_the_same_share(self, sizes, more):
        largest = max(sizes.values())
        plan = plan_augmentation(sizes, ALL, largest + more)
        assert max(size + plan[name] for name, size in sizes.items()) == largest + more
        for name, size in sizes.items():
            assert plan[name] >= 1
            assert plan[name] == 1 or abs(plan[name] - size * more / largest) <= 0.5
        assert plan_augmentation(sizes, ALL) == sizes


class TestAugmentation:
    def test_mode_all(self, make_dataset):
        dataset = make_dataset({"A": 3, "B": 5})
        assert create_augmented_data(dataset, mode=ALL) == {"A": 3, "B": 5}
        after = digests(dataset)
        assert create_augmented_data(dataset, mode=ALL) == {"A": 0, "B": 0}
        assert digests(dataset) == after
        assert create_augmented_data(dataset, mode=ALL, target=15) == {"A": 3, "B": 5}
        assert after.items() <= digests(dataset).items()
        assert counts_in(dataset, "A_augmented", "B_augmented") == [6, 10]

    def test_images_that_another_mode_does_not_need_are_moved(self, make_dataset):
        dataset, other = make_dataset({"A": 3, "B": 5}), make_dataset({"A": 3, "B": 5}, name="other")
        create_augmented_data(dataset, mode=ALL)
        before = images_in(dataset)
        assert create_augmented_data(dataset) == {"A": 0, "B": 0}
        assert images_in(dataset) == before
        assert counts_in(dataset / "left_out", "A_augmented", "B_augmented") == [1, 5]
        create_augmented_data(other)
        assert {name: digest for name, digest in digests(dataset).items() if "left_out" not in name} == digests(other)

    def test_mode_minority_with_target(self, make_dataset):
        dataset = make_dataset({"A": 3, "B": 6, "C": 12})
        assert create_augmented_data(dataset, target=8) == {"A": 5, "B": 2, "C": 0}
        assert create_augmented_data(dataset, target=8) == {"A": 0, "B": 0, "C": 0}

    @pytest.mark.parametrize(
        ("mode", "target", "complaint"),
        [
            (ALL, 9, "--augment-to 9: must be above the 9 images of B, the largest class, with --augment all"),
            (MINORITY, 2, "--augment-to 2: every class has more images already, A the fewest, 3"),
            (MINORITY, 901, "--augment-to 901: must be at most 100 times the 9 images of B, the largest class"),
        ],
    )
    def test_unsuitable_targets_are_errors(self, make_dataset, mode, target, complaint):
        dataset = make_dataset({"A": 3, "B": 9})
        create_augmented_data(dataset)
        before = digests(dataset)
        with pytest.raises(UserError) as error:
            create_augmented_data(dataset, mode=mode, target=target)
        assert str(error.value) == complaint
        assert digests(dataset) == before

    def test_class_names_in_different_unicode_forms(self, make_dataset, held_out):
        composed, decomposed = "K\u00e4se", "Ka\u0308se"
        dataset = make_dataset({f"{decomposed} ": 6, "B": 9})
        extra = make_dataset({composed: 1}, name="extra")
        (held_out / f" {composed}").mkdir(parents=True)
        assert create_testing_batch(dataset, held_out, 2) == {"B": 2, composed: 2}
        assert add_extra_testing(extra, held_out) == {composed: 1}
        assert sorted(path.name for path in held_out.iterdir()) == [f" {composed}", "B", "testing_batch.csv"]
        assert create_testing_batch(dataset, held_out, 2) == {"B": 0, composed: 0}
        assert create_augmented_data(dataset) == {"B": 0, composed: 3}
        assert create_augmented_data(dataset) == {"B": 0, composed: 0}
        assert counts_in(dataset, f"{composed}_augmented") == [3]
        assert reduce_classes(dataset, 3) == {"B": 4, composed: 1}

    def test_16_bit_images_are_scaled_by_their_range(self, tmp_path, monkeypatch):
        for name, count, value in (("A", 1, 3000), ("B", 3, 4000)):
            (tmp_path / name).mkdir()
            for number in range(count):
                Image.fromarray(np.full((30, 30), value, np.uint16)).save(tmp_path / name / f"{number}.png")
        monkeypatch.setattr("dataset.augmentation_data.augment", lambda image, *_: image)
        assert create_augmented_data(tmp_path) == {"A": 2, "B": 0}
        for path in image_files(tmp_path / "A_augmented"):
            assert np.asarray(read_image(path))[112, 112] == pytest.approx(3000 * 255 / 4095, abs=1)

    def test_sources_with_longest_names(self, make_dataset):
        dataset = make_dataset({"A": 2, "B": 4})
        for end, path in enumerate(image_files(dataset / "A")):
            path.rename(path.with_name("\u5199" * 83 + f"{end}{path.suffix}"))
        assert create_augmented_data(dataset) == {"A": 2, "B": 0}
        before = digests(dataset)
        assert create_augmented_data(dataset) == {"A": 0, "B": 0}
        assert digests(dataset) == before

    def test_every_class_gets_the_size_of_the_largest(self, make_dataset):
        dataset = make_dataset({"A": 3, "B": 9, "C": 7})
        before = digests(dataset)
        assert create_augmented_data(dataset) == {"A": 6, "B": 0, "C": 2}
        assert not (dataset / "B_augmented").exists()
        assert before.items() <= digests(dataset).items()
        for name, count in (("A", 6), ("C", 2)):
            made = image_files(dataset / f"{name}_augmented")
            assert sorted(int(path.stem[-4:]) for path in made) == list(range(1, count + 1))
            assert {source_stem(path) for path in made} <= {path.stem for path in image_files(dataset / name)}
            for path in made:
                with Image.open(path) as image:
                    assert (image.size, image.mode) == ((224, 224), "RGB")

    def test_several_processes_give_identical_results(self, make_dataset, monkeypatch):
        one, several = (make_dataset({"A": 3, "B": 19}, name=name) for name in ("one", "several"))
        create_augmented_data(one)
        monkeypatch.setattr(augmentation_data, "_WORTH_PROCESSES", 0)
        monkeypatch.setattr(augmentation_data, "available_cores", lambda: 3)
        monkeypatch.setattr(augmentation_data, "augment", None)  # in this process
        create_augmented_data(several)
        assert digests(one) == digests(several)

    def test_missing_images_are_made_again_identically(self, make_dataset):
        dataset = make_dataset({"A": 3, "B": 12})
        create_augmented_data(dataset)
        whole = digests(dataset)
        for path in image_files(dataset / "A_augmented")[::2]:
            path.unlink()
        assert create_augmented_data(dataset) == {"A": 5, "B": 0}
        assert digests(dataset) == whole

    def test_seed_decides_the_augmentation(self, make_dataset):
        made = []
        for seed in (0, 1):
            dataset = make_dataset({"A": 3, "B": 9}, name=str(seed))
            create_augmented_data(dataset, seed)
            made.append(images_in(dataset / "A_augmented"))
        assert not set(made[0]) & set(made[1])

    def test_augmented_images_without_source_are_moved(self, make_dataset):
        """They would leak a source that was moved to the test set. A smaller target needs fewer images too."""
        dataset = make_dataset({"A": 3, "B": 9})
        create_augmented_data(dataset)
        gone = image_files(dataset / "A")[0]
        children = {name for name in names_in(dataset / "A_augmented") if name.startswith(f"{gone.stem}_aug_")}
        assert children
        gone.unlink()
        for path in image_files(dataset / "B")[:4]:
            path.unlink()
        create_augmented_data(dataset)
        assert not children & names_in(dataset / "A_augmented")
        assert children <= names_in(dataset / "left_out/A_augmented")
        assert counts_in(dataset, "A_augmented") == [5 - 2]

    def test_unreadable_images_are_not_augmented_and_do_not_count(self, make_dataset):
        dataset = make_dataset({"A": 2, "B": 6}, kinds=("jpg",))
        for name in "AB":
            (dataset / name / "9999.jpg").write_bytes(b"")
        assert create_augmented_data(dataset) == {"A": 4, "B": 0}
        assert not list((dataset / "A_augmented").glob("9999*"))

    def test_class_without_readable_images_is_an_error(self, make_dataset):
        dataset = make_dataset({"A": 2, "B": 3}, kinds=("broken",))
        with pytest.raises(UserError, match="A has no readable image to augment"):
            create_augmented_data(dataset)

    def test_one_to_six_transforms_in_random_order(self, monkeypatch):
        applied = []
        recorders = [lambda image, number=number: (applied[-1].append(number), image)[1] for number in range(6)]
        monkeypatch.setattr(augmentation_data, "_transforms", lambda: recorders)
        for number in range(600):
            applied.append([])
            augment(noise(), "A", number, seed=0)
        counts = Counter(map(len, applied))
        assert set(counts) == {1, 2, 3, 4, 5, 6}
        assert min(counts.values()) > 60  # 100 are expected, with a standard deviation of 9
        assert all(len(set(numbers)) == len(numbers) for numbers in applied)
        firsts, lasts = Counter(numbers[0] for numbers in applied), Counter(numbers[-1] for numbers in applied)
        assert min(firsts.values()) > 60 < min(lasts.values())

    def test_random_state_of_torch_is_unchanged(self):
        state = torch.get_rng_state()
        augment(noise(), "A", 1, seed=0)
        assert torch.equal(torch.get_rng_state(), state)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(5, 14), min_size=2, max_size=4),
    kinds=st.lists(st.sampled_from([*KINDS, "broken"]), min_size=1, max_size=6).filter(
        lambda kinds: kinds != ["broken"]
    ),
    max_per_class=st.integers(5, 12),
    per_class=st.integers(0, 2),
)
def test_no_image_is_lost_and_classes_have_equal_sizes(make_dataset, sizes, kinds, max_per_class, per_class):
    names = [f"class {number}" for number in range(len(sizes))]
    dataset = make_dataset(dict(zip(names, sizes, strict=True)), kinds, f"{uuid.uuid4().hex}/dataset")
    held_out = dataset.parent / "testing"
    before = images_in(dataset)
    reduce_classes(dataset, max_per_class)
    try:
        create_testing_batch(dataset, held_out, per_class)
    except UserError:  # unreadable files can leave too few
        assert "broken" in kinds
        return
    if any(not examine(image_files(dataset / name))[0] for name in names):
        return
    create_augmented_data(dataset)
    made = [digest for name, digest in digests(dataset).items() if "_augmented/" in name]
    assert sorted(before + made) == images_in(dataset.parent)
    readable = [len(examine(image_files(dataset / name))[0]) for name in names]
    extra = counts_in(dataset, *(f"{name}_augmented" for name in names))
    assert {count + more for count, more in zip(readable, extra, strict=True)} == {max(readable)}
    assert max(counts_in(dataset, *names)) <= max_per_class
    assert counts_in(held_out, *names) == [per_class] * len(names)
    state = digests(dataset.parent)
    reduce_classes(dataset, max_per_class)
    create_testing_batch(dataset, held_out, per_class)
    create_augmented_data(dataset)
    assert digests(dataset.parent) == state
