"""The README and the pages of docs/: links, tables of flags, results, and code that runs."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from helpers import REPOSITORY, start

PAGES = {path: path.read_text() for path in [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]}
README, *PAGES_OF_DOCS = PAGES.values()
DOCS = "\n".join(PAGES_OF_DOCS)


def without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text):
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)", without_code(text), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings]


def find_section(anchor, text=DOCS):
    """The text below a heading, code included, up to the next heading."""
    parts = re.split(r"^##+ (.+)\n", text, flags=re.MULTILINE)
    return dict(zip((anchors(f"# {heading}")[0] for heading in parts[1::2]), parts[2::2], strict=True))[anchor]


def test_readme_is_short():
    assert len(README.splitlines()) <= 220
    assert len(README.split()) <= 2000


def test_results_of_the_readme_are_those_of_the_results_page():
    numbers = re.findall(r"\d+\.\d+%", find_section("how-good-is-it", README))
    assert len(numbers) > 10
    results = PAGES[REPOSITORY / "docs/results.md"]
    assert [number for number in numbers if number not in results] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(PAGES[page])):
        place, _, anchor = target.partition("#")
        path = (page.parent / place).resolve() if place else page
        if not target.startswith("http") and (not path.exists() or (anchor and anchor not in anchors(PAGES[path]))):
            wrong.append(target)
    assert wrong == []


def test_headings_are_unique():
    found = [anchor for page in PAGES_OF_DOCS for anchor in anchors(page)]
    assert sorted(found) == sorted(set(found))


def write_flags(repository, *flags):
    command = [sys.executable, repository / "docs/flags.py", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_tables_of_flags_are_those_of_help():
    result = write_flags(REPOSITORY, "--check")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("| `--fix` |", "| `--mend` |", "data.md: not up to date"),
        ("<!-- flags: src/dataset/audit.py -->", "", "no page has the flags of src/dataset/audit.py"),
        ("audit.py -->", "judge.py -->", "there is no program src/dataset/judge.py"),
        ("# Data\n", "# Data\n<!-- flags: src/main.py -->\n<!-- end of flags -->\n", "2 places have the flags"),
    ],
)  # fmt: skip
def test_errors_in_tables_of_flags_are_found(tmp_path, old, new, message):
    shutil.copytree(REPOSITORY / "docs", tmp_path / "docs")
    (tmp_path / "src").symlink_to(REPOSITORY / "src")
    page = tmp_path / "docs/data.md"
    page.write_text(page.read_text().replace(old, new))
    result = write_flags(tmp_path, "--check")
    assert result.returncode == 2
    assert message in result.stderr


def test_results_are_what_the_report_prints(tmp_path):
    printed = []
    results = REPOSITORY / "saved_models/results"
    main = [
        folder for name in ("seed_*", "frozen", "pretrained/seed_*", "scratch/seed_*") for folder in results.glob(name)
    ]
    reports = [
        ["--published", "--models-dir", *sorted(main)],
        ["--published", "--models-dir", results / "folds"],
        ["--published", "--models-dir", *sorted(results.glob("random_split/seed_*"))],
        ["--published", "--models-dir", *sorted(results.glob("with_leaks/seed_*"))],
        ["--runs", results / "sweep.csv"],
        ["--models-dir", *sorted(main), "--runs", results / "sweep.csv", "--output", tmp_path / "clean_runs.csv"],
    ]
    for flags in reports:
        result = start("report.py", "--markdown", "--output", tmp_path / "other.csv", *flags, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        printed += result.stdout.splitlines()
    leak = [sys.executable, REPOSITORY / "benchmarks/leak.py"]
    printed += subprocess.run(leak, capture_output=True, text=True, check=True).stdout.splitlines()
    parts = (
        "main-results", "a-sweep-of-480-runs", "out-of-fold-accuracy", "random-split-and-plain-accuracy",
        "effect-of-a-leak",
    )  # fmt: skip
    shown = re.findall(r"^\|.*", "\n".join(map(find_section, parts)), re.MULTILINE)
    assert len(shown) > 12
    assert set(shown) <= set(printed)
    assert (tmp_path / "clean_runs.csv").read_bytes() == (REPOSITORY / "clean_runs.csv").read_bytes()


def read_code(anchor):
    return re.search(r"```python\n(.*?)```", find_section(anchor), re.DOTALL)[1]


def test_a_model_is_added_as_documented(make_folder, tmp_path):
    sources = tmp_path / "src"
    shutil.copytree(REPOSITORY / "src", sources, ignore=shutil.ignore_patterns("__pycache__"))
    (sources / "models/tiny.py").write_text(read_code("add-a-model"))
    line = re.search(r"in `src/models/__init__.py`: `(.+?)`", find_section("add-a-model"))[1]
    registry = sources / "models/__init__.py"
    registry.write_text(registry.read_text().replace("MODELS = {", f"MODELS = {{\n    {line}"))

    make_folder("dataset", {"Axe": 10, "Book": 10})
    make_folder("dataset_testing", {"Axe": 2, "Book": 2})
    for command in (
        "main.py -m Tiny -e 1 -c --wandb disabled",
        "predict.py saved_models/Tiny_pretrained_False_aug_False_lr_0.0001_wd_0.0001_g_0.99 dataset_testing",
        "report.py",
    ):
        program, *flags = command.split()
        result = subprocess.run(
            [sys.executable, sources / program, *flags], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        assert "Tiny" in result.stdout or "dataset_testing/Book" in result.stdout
    assert len(list((tmp_path / "saved_models").glob("*/heatmaps/*/Tiny_*.png"))) > 0


def test_a_dataset_is_added_as_documented(tmp_path):
    for name in ("mine.npz", "others.npz"):
        subprocess.run(
            [sys.executable, "-c", read_code("add-a-dataset").replace("mine.npz", name)], cwd=tmp_path, check=True
        )
    program, *flags = re.search(r"`(main.py -m SmallVGG .+?)`", find_section("add-a-dataset"))[1].split()
    result = start(program, *flags, "-e", 1, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "as cat  as dog" in result.stdout


@pytest.fixture
def place(make_folder, tmp_path):
    """A folder as a reader has it: the sources, a virtual environment, a trained run, and images to classify."""
    for name, target in (("src", REPOSITORY / "src"), ("parameters", REPOSITORY / "parameters"), (".venv", sys.prefix)):
        (tmp_path / name).symlink_to(target)
    folders = make_folder("train", {"Axe": 6, "Book": 6}), make_folder("folder", {"Axe": 2, "Book": 2})
    Image.new("RGB", (40, 30), "brown").save(tmp_path / "photo.jpg")
    flags = ("-m", "SmallVGG", "-e", 1, "-o", "trained", "--wandb", "disabled")
    result = start("main.py", *flags, "-d", folders[0], "-t", folders[1], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (run,) = (tmp_path / "trained").glob("[!.]*")
    (tmp_path / "saved_models").mkdir()
    run.rename(tmp_path / "saved_models" / "RUN")
    return tmp_path


def test_an_exported_model_is_used_as_documented(place):
    pytest.importorskip("onnxscript", reason="requirements-export.txt is not installed")
    asked = start("predict.py", "saved_models/RUN", "photo.jpg", "--json", "--export", "model.onnx", cwd=place)
    assert asked.returncode == 0, asked.stderr
    code = read_code("export-the-model")
    printed = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=True).stdout
    (entry,) = json.loads(asked.stdout)
    found = re.findall(r"'(\w+)': np.float32\((.+?)\)", printed)
    assert {name: float(share) for name, share in found}[entry["class"]] == pytest.approx(entry["confidence"], abs=0.01)
    assert len(found) == 2


@pytest.mark.slow
def test_blocks_marked_as_runnable_run(place):
    blocks = re.findall(r"^```bash runnable\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 8
    printed = ""
    for block in blocks:
        block = re.sub(r" -e \d+ ", " -e 1 ", block)
        result = subprocess.run(
            ["bash", "-euc", block], cwd=place, env={**os.environ, "WANDB_MODE": "disabled"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 0, f"{block}\n{result.stderr}"
        printed += result.stdout
    assert len(list((place / "dataset/Axe_augmented").iterdir())) == 120
    assert "status 1" in printed
    assert len((place / "answers.csv").read_text().splitlines()) == 5
    assert len(list((place / "maps").rglob("*.png"))) == 4
