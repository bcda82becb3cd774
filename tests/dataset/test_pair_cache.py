"""Tests that the results of close comparisons are stored."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dataset import audit as audit_module
from dataset import duplicates, pair_cache
from dataset.audit import audit
from dataset.duplicates import compare_closely, fingerprint
from dataset.pair_cache import compare_unknown


@pytest.fixture
def compared(monkeypatch):
    """Record the pairs that are compared closely."""
    pairs = []
    original = duplicates.are_alike
    monkeypatch.setattr(duplicates, "are_alike", lambda *pair: pairs.append(pair) or original(*pair))
    return pairs


def draw(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return fingerprint(Image.fromarray(pixels).resize((60, 60), Image.Resampling.BICUBIC))


def test_pairs_are_known_in_either_order_and_by_content(tmp_path, compared):
    prints = [draw(0), draw(0), draw(1)]
    pairs = [(0, 2), (2, 0), (1, 2), (0, 1), (0, 2)]
    assert compare_closely(prints, pairs, tmp_path) == [False, False, False, True, False]
    assert len(compared) == 2
    assert compare_closely(prints[::-1], [(0, 1), (2, 1)], tmp_path) == [False, True]
    assert len(compared) == 2
    assert compare_closely([], [], tmp_path) == []


def test_store_collects_the_results_of_several_calls(tmp_path, compared):
    prints, store = [draw(seed) for seed in range(4)], tmp_path / "store"
    compare_closely(prints, [(0, 1), (1, 2)], store)
    compare_closely(prints, [(0, 2), (1, 2)], store)
    assert len(compared) == 3
    assert compare_closely(prints, [(0, 1), (0, 2), (1, 2)], store) == [False] * 3
    assert len(compared) == 3
    assert len(np.load(store / "pairs.npy")) == 4


def test_without_store_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compare_closely([draw(0), draw(1)], [(0, 1)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "foreign", "no numbers", "other version", "folder"])
def test_unusable_store_is_ignored(tmp_path, damage, compared, monkeypatch):
    prints = [draw(0), draw(1)]
    compare_closely(prints, [(0, 1)], tmp_path)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    if damage == "folder":
        file.unlink()
        (file / "sub").mkdir(parents=True)
    elif damage in ("foreign", "no numbers"):
        np.save(file, np.zeros((3, 3) if damage == "foreign" else 0, dtype=np.uint64))
    elif damage == "other version":
        monkeypatch.setattr(pair_cache, "_VERSION", 99)
    else:
        file.write_bytes({"empty": b"", "text": b"text", "cut": content[: len(content) - 4]}[damage])
    assert compare_closely(prints, [(0, 1)], tmp_path) == [False]
    assert len(compared) == 2


def test_unwritable_store_is_no_error(tmp_path):
    (tmp_path / "store").write_text("a file where the folder should be")
    assert compare_closely([draw(0), draw(0)], [(0, 1)], tmp_path / "store") == [True]


@given(st.lists(st.lists(st.integers(0, 2**64 - 1), max_size=8), max_size=6))
def test_each_pair_is_compared_once(tmp_path_factory, batches):
    store = tmp_path_factory.mktemp("store")
    for batch in batches:
        keys = np.array(sorted(batch), dtype=np.uint64)

        def compare(indices, keys=keys):
            return keys[indices] % 6 < 2  # does not depend on the lowest bit

        expected = (keys & ~np.uint64(1)) % 6 < 2
        assert compare_unknown(keys, compare, store).tolist() == expected.tolist()
    for batch in batches:
        compare_unknown(np.array(batch, dtype=np.uint64), lambda indices: pytest.fail("compared again"), store)


def test_second_audit_compares_nothing(tmp_path, monkeypatch, compared):
    monkeypatch.setattr(audit_module, "STORE", tmp_path / "store")
    for number in range(1050):
        pattern = np.random.default_rng([2, number % 10]).integers(0, 256, (4, 4, 3)).repeat(8, 0).repeat(8, 1)
        noise = np.random.default_rng([3, number]).integers(-60, 60, (32, 32, 3))
        folder = tmp_path / "dataset" / f"class_{number % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pattern + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{number:04d}.png")
    first = audit(tmp_path / "dataset", [])
    assert len(compared) > 1000
    compared.clear()
    assert audit(tmp_path / "dataset", []) == first
    assert compared == []


def test_second_audit_of_photographs_compares_nothing(photographs, tmp_path, monkeypatch, compared):
    monkeypatch.setattr(audit_module, "STORE", tmp_path / "store")
    folders = (photographs / "open_images", [photographs / "open_images_testing"])
    first = audit(*folders)
    assert len(compared) > 1000
    compared.clear()
    assert audit(*folders).duplicates == first.duplicates
    assert compared == []
