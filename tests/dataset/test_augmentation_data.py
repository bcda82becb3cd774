"""Tests of reducing, splitting and augmenting classes."""

import hashlib
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
    prepare_to_augment,
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

    def make(sizes, kinds=KINDS, directory=tmp_path / "dataset"):
        seed = 0
        for name, count in sizes.items():
            (directory / name).mkdir(parents=True)
            for number in range(count):
                save_as(noise(seed=seed), directory / name / f"{number:04d}", kinds[seed % len(kinds)])
                seed += 1
        return directory

    return make


def images_in(directory):
    return sorted(digest for name, digest in digests(directory).items() if not name.endswith(".csv"))


class TestReduce:
    def test_surplus_images_are_moved(self, make_dataset):
        dataset = make_dataset({"A": 12, "B": 3})
        before = images_in(dataset)
        assert reduce_classes(dataset, 5) == {"A": 7, "B": 0}
        assert [len(image_files(dataset / place)) for place in ("A", "B", "left_out/A")] == [5, 3, 7]
        assert images_in(dataset) == before
        assert len(read_rows(dataset / "left_out/log.csv", ["moved_to"])) == 7
        assert reduce_classes(dataset, 5) == {"A": 0, "B": 0}

    def test_seed_decides_which_images_are_moved(self, make_dataset, tmp_path):
        kept = []
        for seed in (0, 1):
            dataset = make_dataset({"A": 12, "B": 3}, directory=tmp_path / str(seed))
            reduce_classes(dataset, 5, seed)
            kept.append([path.name for path in image_files(dataset / "A")])
        assert kept[0] != kept[1]

    def test_interrupted_reduction_gives_identical_results(self, make_dataset, tmp_path, monkeypatch):
        undisturbed, stopped = (make_dataset({"A": 12, "B": 3}, directory=tmp_path / name) for name in "us")
        reduce_classes(undisturbed, 5)
        stop_after(monkeypatch, moving, "move_file", 3)
        with pytest.raises(KeyboardInterrupt):
            reduce_classes(stopped, 5)
        monkeypatch.undo()
        reduce_classes(stopped, 5)
        assert digests(stopped) == digests(undisturbed)


def stop_after(monkeypatch, module, name, count):
    """Make a function of a module raise KeyboardInterrupt after `count` calls."""
    original, done = getattr(module, name), []

    def limited(*arguments):
        if len(done) == count:
            raise KeyboardInterrupt
        done.append(original(*arguments))

    monkeypatch.setattr(module, name, limited)


class TestTestingBatch:
    def test_moves_per_class_images(self, make_dataset, tmp_path):
        dataset, testing = make_dataset({"A": 9, "B": 12}), tmp_path / "testing"
        before = images_in(dataset)
        assert create_testing_batch(dataset, testing, 4) == {"A": 4, "B": 4}
        assert [len(image_files(folder / name)) for folder in (dataset, testing) for name in "AB"] == [5, 8, 4, 4]
        assert sorted(images_in(dataset) + images_in(testing)) == before

    def test_second_call_changes_nothing(self, make_dataset, tmp_path):
        dataset, testing = make_dataset({"A": 9, "B": 12}), tmp_path / "testing"
        create_testing_batch(dataset, testing, 4)
        after = digests(tmp_path)
        assert create_testing_batch(dataset, testing, 4) == {"A": 0, "B": 0}
        assert create_testing_batch(dataset, testing, 6, seed=3) == {"A": 0, "B": 0}
        assert digests(tmp_path) == after

    def test_deleted_test_images_are_reported(self, make_dataset, tmp_path, caplog):
        dataset, testing = make_dataset({"A": 9, "B": 12}), tmp_path / "testing"
        create_testing_batch(dataset, testing, 4)
        assert caplog.messages == []
        shutil.rmtree(testing / "A")
        assert create_testing_batch(dataset, testing, 4) == {"A": 0, "B": 0}
        (message,) = caplog.messages
        assert message.startswith("A has none of its test images left")

    def test_class_with_test_images_keeps_them(self, make_dataset, tmp_path):
        dataset, testing = make_dataset({"A": 9, "B": 12}), tmp_path / "testing"
        (testing / "A").mkdir(parents=True)
        noise(seed=99).save(testing / "A" / "own.jpg")
        assert create_testing_batch(dataset, testing, 4) == {"A": 0, "B": 4}

    def test_no_near_duplicate_remains_in_training(self, make_dataset, tmp_path):
        dataset, testing = make_dataset({"A": 8, "B": 8}, kinds=("jpg",)), tmp_path / "testing"
        for number in range(4):
            noise((60, 45), seed=number).save(dataset / "A" / f"copy_{number}.jpg", quality=60)
        noise((60, 45), seed=8).save(dataset / "A" / "label_conflict.jpg")
        assert create_testing_batch(dataset, testing, 4)["A"] == 4
        assert {path.name for path in image_files(testing / "A")} == {f"{number:04d}.jpg" for number in range(4, 8)}
        assert "0000.jpg" not in {path.name for path in image_files(testing / "B")}

    def test_too_few_images_are_an_error(self, make_dataset, tmp_path):
        dataset, testing = make_dataset({"A": 9, "B": 5}), tmp_path / "testing"
        before = digests(tmp_path)
        with pytest.raises(UserError, match=r"B has 5 readable images in 5 groups.*--testing-per-class"):
            create_testing_batch(dataset, testing, 4)
        assert digests(tmp_path) == before

    def test_groups_are_drawn_if_single_images_are_too_few(self, make_dataset, tmp_path):
        dataset, testing = make_dataset({"A": 7, "B": 9}, kinds=("jpg",)), tmp_path / "testing"
        for number in range(4):
            noise((60, 45), seed=number).save(dataset / "A" / f"copy_{number}.jpg", quality=60)
        noise((60, 45), seed=7).save(dataset / "A" / "label_conflict.jpg")  # as B/0000.jpg
        assert create_testing_batch(dataset, testing, 7)["A"] == 7
        drawn = {path.name for path in image_files(testing / "A")}
        assert {"0004.jpg", "0005.jpg", "0006.jpg"} <= drawn
        assert all((f"{number:04d}.jpg" in drawn) == (f"copy_{number}.jpg" in drawn) for number in range(4))
        assert "label_conflict.jpg" not in drawn

    def test_group_that_does_not_fit_is_not_split(self, make_dataset, tmp_path, caplog):
        dataset, testing = make_dataset({"A": 3, "B": 9}, kinds=("jpg",)), tmp_path / "testing"
        for number in range(3):
            for copy in range(2):
                noise((60 + 4 * copy, 45), seed=number).save(dataset / "A" / f"copy_{number}_{copy}.jpg", quality=60)
        with pytest.raises(UserError, match=r"A has 9 readable images in 3 groups .*--testing-per-class"):
            create_testing_batch(dataset, testing, 5)
        with pytest.raises(UserError, match=r"A has 9 readable images in 3 groups .* keep two groups"):
            create_testing_batch(dataset, testing, 6)
        assert caplog.messages == []
        assert create_testing_batch(dataset, testing, 4) == {"A": 3, "B": 4}
        assert caplog.messages == ["A gets 3 test images: groups of near-duplicates are not split"]
        assert len({path.name[-5 if path.name[0] == "0" else 5] for path in image_files(testing / "A")}) == 1
        assert create_testing_batch(dataset, testing, 4) == {"A": 0, "B": 0}

    def test_odd_number_from_pairs_moves_one_less(self, make_dataset, tmp_path):
        dataset, testing = make_dataset({"A": 6, "B": 9}, kinds=("jpg",)), tmp_path / "testing"
        for number in range(6):
            noise((60, 45), seed=number).save(dataset / "A" / f"copy_{number}.jpg", quality=60)
        assert create_testing_batch(dataset, testing, 5) == {"A": 4, "B": 5}

    def test_two_groups_remain(self, make_dataset, tmp_path):
        """There are ten single images and a pair. Two single images must remain, or the pair and one."""
        dataset, testing = make_dataset({"A": 11, "B": 13}, kinds=("jpg",)), tmp_path / "testing"
        noise((60, 45), seed=0).save(dataset / "A/copy.jpg", quality=60)
        assert create_testing_batch(dataset, testing, 10) == {"A": 10, "B": 10}
        stay = {path.name for path in image_files(dataset / "A")}
        assert len(stay) == 2
        assert not stay & {"0000.jpg", "copy.jpg"}

    def test_crops_of_one_photograph_stay_together(self, make_dataset, tmp_path):
        dataset, testing = make_dataset({"A": 8, "B": 8}, kinds=("jpg",)), tmp_path / "testing"
        rows = [{"file": f"A/{number:04d}.jpg", "image_id": str(number // 2)} for number in range(6)]
        write_rows(dataset / "open_images.csv", ("file", "image_id"), [*rows, {"file": "B/0000.jpg", "image_id": "0"}])
        create_testing_batch(dataset, testing, 4)
        drawn = {int(path.stem) for path in image_files(testing / "A")}
        assert {6, 7} <= drawn
        assert drawn - {6, 7} in ({2, 3}, {4, 5})
        assert "0000.jpg" not in {path.name for path in image_files(testing / "B")}

    @pytest.mark.parametrize("moves_done", [0, 5])
    def test_interrupted_split_gives_identical_results(self, make_dataset, tmp_path, monkeypatch, moves_done):
        for name in ("undisturbed", "stopped"):
            make_dataset({"A": 9, "B": 12}, directory=tmp_path / name / "dataset")
        create_testing_batch(tmp_path / "undisturbed/dataset", tmp_path / "undisturbed/testing", 4)
        stop_after(monkeypatch, augmentation_data, "move_file", moves_done)
        with pytest.raises(KeyboardInterrupt):
            create_testing_batch(tmp_path / "stopped/dataset", tmp_path / "stopped/testing", 4)
        monkeypatch.undo()
        create_testing_batch(tmp_path / "stopped/dataset", tmp_path / "stopped/testing", 4)
        assert digests(tmp_path / "stopped") == digests(tmp_path / "undisturbed")

    def test_extra_images_with_longest_names_are_copied_once(self, make_dataset, tmp_path):
        extra, testing = make_dataset({"A": 1}, directory=tmp_path / "extra"), tmp_path / "testing"
        (image,) = image_files(extra / "A")
        for end in "12":
            shutil.copy(image, extra / "A" / ("x" * 250 + f"{end}.jpg"))
        assert add_extra_testing(extra, testing) == {"A": 3}
        assert add_extra_testing(extra, testing) == {"A": 0}

    def test_extra_images_are_copied_once(self, make_dataset, tmp_path):
        extra, testing = make_dataset({"A": 2, "B": 1}, directory=tmp_path / "extra"), tmp_path / "testing"
        before = digests(extra)
        assert add_extra_testing(extra, testing) == {"A": 2, "B": 1}
        assert add_extra_testing(extra, testing) == {"A": 0, "B": 0}
        assert digests(extra) == before
        assert sorted(images_in(testing)) == images_in(extra)
        own = make_dataset({"A": 1}, directory=tmp_path / "of one class")
        assert add_extra_testing(own, tmp_path / "other testing") == {"A": 1}
        noise(seed=50).save(extra / "A" / "0000.jpg")
        with pytest.raises(UserError, match="is another image"):
            add_extra_testing(extra, testing)


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
        assert [len(image_files(dataset / f"{name}_augmented")) for name in "AB"] == [6, 10]

    def test_images_that_another_mode_does_not_need_are_moved(self, make_dataset, tmp_path):
        dataset, other = make_dataset({"A": 3, "B": 5}), make_dataset({"A": 3, "B": 5}, directory=tmp_path / "other")
        create_augmented_data(dataset, mode=ALL)
        before = images_in(dataset)
        assert create_augmented_data(dataset) == {"A": 0, "B": 0}
        assert images_in(dataset) == before
        assert [len(image_files(dataset / "left_out" / f"{name}_augmented")) for name in "AB"] == [1, 5]
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

    @pytest.mark.parametrize(
        ("mode", "target", "worth"), [(MINORITY, None, False), (MINORITY, 20, True), (ALL, None, True), (ALL, 9, False)]
    )
    def test_processes_are_used_for_many_images(self, make_dataset, monkeypatch, mode, target, worth):
        """6, 28, 12 or no images are missing. An unsuitable target is not an error yet."""
        monkeypatch.setattr(augmentation_data, "_WORTH_PROCESSES", 10)
        monkeypatch.setattr(augmentation_data, "available_cores", lambda: 2)
        assert prepare_to_augment(make_dataset({"A": 3, "B": 9}), mode, target) == worth

    def test_class_names_in_different_unicode_forms(self, make_dataset, tmp_path):
        composed, decomposed = "K\u00e4se", "Ka\u0308se"
        dataset, testing, extra = (tmp_path / name for name in ("dataset", "testing", "extra"))
        make_dataset({f"{decomposed} ": 6, "B": 9})
        make_dataset({composed: 1}, directory=extra)
        (testing / f" {composed}").mkdir(parents=True)
        assert create_testing_batch(dataset, testing, 2) == {"B": 2, composed: 2}
        assert add_extra_testing(extra, testing) == {composed: 1}
        assert sorted(path.name for path in testing.iterdir()) == [f" {composed}", "B", "testing_batch.csv"]
        assert create_testing_batch(dataset, testing, 2) == {"B": 0, composed: 0}
        assert create_augmented_data(dataset) == {"B": 0, composed: 3}
        assert create_augmented_data(dataset) == {"B": 0, composed: 0}
        assert len(image_files(dataset / f"{composed}_augmented")) == 3
        assert reduce_classes(dataset, 3) == {"B": 4, composed: 1}

    def test_16_bit_images_are_scaled_by_their_range(self, tmp_path, monkeypatch):
        for name, count in (("A", 1), ("B", 3)):
            (tmp_path / "data" / name).mkdir(parents=True)
            for number in range(count):
                values = np.full((30, 30), 3000 if name == "A" else 4000, np.uint16)
                Image.fromarray(values).save(tmp_path / "data" / name / f"{number}.png")
        monkeypatch.setattr("dataset.augmentation_data.augment", lambda image, *_: image)
        assert create_augmented_data(tmp_path / "data") == {"A": 2, "B": 0}
        for path in image_files(tmp_path / "data" / "A_augmented"):
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
            stems = {path.stem for path in image_files(dataset / name)}
            assert len(made) == count
            assert [int(path.stem.rpartition("_")[2]) for path in sorted(made, key=lambda p: p.stem[-4:])] == [
                *range(1, count + 1)
            ]
            for path in made:
                assert source_stem(path) in stems
                with Image.open(path) as image:
                    assert (image.size, image.mode) == ((224, 224), "RGB")

    def test_second_call_changes_nothing(self, make_dataset):
        dataset = make_dataset({"A": 3, "B": 9})
        create_augmented_data(dataset)
        after = digests(dataset)
        assert create_augmented_data(dataset) == {"A": 0, "B": 0}
        assert digests(dataset) == after

    def test_results_do_not_depend_on_the_number_of_cores(self, make_dataset, tmp_path, monkeypatch):
        monkeypatch.setattr(augmentation_data, "_WORTH_PROCESSES", 0)
        made = []
        for cores in (1, 8):
            dataset = make_dataset({"A": 3, "B": 19}, directory=tmp_path / str(cores))
            create_augmented_data(dataset, cores=cores)
            made.append(digests(dataset))
        assert made[0] == made[1]

    def test_missing_images_are_made_again_identically(self, make_dataset):
        dataset = make_dataset({"A": 3, "B": 12})
        create_augmented_data(dataset)
        whole = digests(dataset)
        for path in image_files(dataset / "A_augmented")[::2]:
            path.unlink()
        assert create_augmented_data(dataset) == {"A": 5, "B": 0}
        assert digests(dataset) == whole

    def test_seed_decides_the_augmentation(self, make_dataset, tmp_path):
        made = []
        for seed in (0, 1):
            dataset = make_dataset({"A": 3, "B": 9}, directory=tmp_path / str(seed))
            create_augmented_data(dataset, seed)
            made.append(images_in(dataset / "A_augmented"))
        assert not set(made[0]) & set(made[1])

    def test_augmented_images_without_source_are_moved(self, make_dataset):
        """They would leak a source that was moved to the test set. A smaller target needs fewer images too."""
        dataset = make_dataset({"A": 3, "B": 9})
        create_augmented_data(dataset)
        gone = image_files(dataset / "A")[0]
        children = [path for path in image_files(dataset / "A_augmented") if source_stem(path) == gone.stem]
        assert children
        gone.unlink()
        for path in image_files(dataset / "B")[:4]:
            path.unlink()
        create_augmented_data(dataset)
        assert not any(path.exists() for path in children)
        assert {path.name for path in children} <= {path.name for path in image_files(dataset / "left_out/A_augmented")}
        assert len(image_files(dataset / "A_augmented")) == 5 - 2

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
        recorders = [lambda image, place=place: (applied[-1].append(place), image)[1] for place in range(6)]
        monkeypatch.setattr(augmentation_data, "_transforms", lambda: recorders)
        for number in range(600):
            applied.append([])
            augment(noise(), "A", number, seed=0)
        counts = Counter(map(len, applied))
        assert set(counts) == {1, 2, 3, 4, 5, 6}
        assert min(counts.values()) > 60  # 100 are expected, with a standard deviation of 9
        assert all(len(set(places)) == len(places) for places in applied)
        firsts, lasts = Counter(places[0] for places in applied), Counter(places[-1] for places in applied)
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
def test_no_image_is_lost_and_classes_have_equal_sizes(make_dataset, tmp_path, sizes, kinds, max_per_class, per_class):
    place = tmp_path / uuid.uuid4().hex
    dataset, testing = place / "dataset", place / "testing"
    make_dataset({f"class {number}": size for number, size in enumerate(sizes)}, kinds, dataset)
    names = [f"class {number}" for number in range(len(sizes))]
    before = images_in(dataset)
    reduce_classes(dataset, max_per_class)
    try:
        create_testing_batch(dataset, testing, per_class)
    except UserError:  # unreadable files can leave too few
        assert "broken" in kinds
        return
    if any(not examine(image_files(dataset / name))[0] for name in names):
        return
    create_augmented_data(dataset)
    augmented = [path for name in names for path in image_files(dataset / f"{name}_augmented")]
    made = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in augmented)
    after = images_in(dataset) + (images_in(testing) if testing.exists() else [])
    assert sorted(before + made) == sorted(after)
    readable = [len(examine(image_files(dataset / name))[0]) for name in names]
    extra = [len(image_files(dataset / f"{name}_augmented")) for name in names]
    assert {count + more for count, more in zip(readable, extra, strict=True)} == {max(readable)}
    assert all(len(image_files(dataset / name)) <= max_per_class for name in names)
    assert all(len(image_files(testing / name)) == per_class for name in names)
    state = digests(place)
    reduce_classes(dataset, max_per_class)
    create_testing_batch(dataset, testing, per_class)
    create_augmented_data(dataset)
    assert digests(place) == state
