"""The README tells of every program and flag that there is, and of no other."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from helpers import REPOSITORY, start

README = (REPOSITORY / "README.md").read_text()


def find_section(anchor):
    """The text below the heading that a link such as #fetch leads to."""
    for heading, text in re.findall(r"^##+ (.+)\n((?:(?!## |### ).*\n)*)", README, re.MULTILINE):
        if re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") == anchor:
            return text
    raise LookupError(f"no heading has the anchor {anchor}")


def read_rows(section):
    """The cells of each row of a section's first table, without the heading."""
    table = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]


def read_flags(text):
    return re.findall(r"--[a-z][a-z-]*", text)


COMMANDS = {row[0].strip("`"): row[1].rstrip(" |") for row in read_rows(find_section("commands-and-flags"))}


def test_every_program_is_in_the_table():
    programs = {
        path.relative_to(REPOSITORY).as_posix()
        for folder in ("src", "src/dataset")
        for path in (REPOSITORY / folder).glob("*.py")
        if "run_program(main" in path.read_text() and path.name != "common.py"
    }
    assert {command.split()[0] for command in COMMANDS} == programs


@pytest.mark.parametrize("command", COMMANDS)
def test_flags_and_defaults_are_those_of_help(command, tmp_path):
    program, *words = command.split()
    subcommand = [word for word in words if word.islower()]
    text = start(program.removeprefix("src/"), *subcommand, "--help", cwd=tmp_path).stdout
    options = text[text.index("options:") :]
    offered = {}
    for entry in re.split(r"\n  (?=-)", options)[1:]:
        flag = re.search(r"--[a-z][a-z-]*", entry)[0]
        default = re.search(r"\(default:([^)]*)\)", entry)
        offered[flag] = " ".join(default[1].split()) if default else ""
    del offered["--help"]

    link = re.fullmatch(r"\[its table\]\(#(.+)\)", COMMANDS[command])
    if not link:
        assert sorted(read_flags(COMMANDS[command])) == sorted(offered)
        return
    told = {flag: row[1].strip("`") for row in read_rows(find_section(link[1])) for flag in read_flags(row[0])}
    assert told.keys() == offered.keys()
    for flag, default in offered.items():
        if re.fullmatch(r"[\w.]+", default):
            assert float(told[flag]) == float(default) if default[0].isdigit() else told[flag] == default, flag


def test_the_results_are_what_the_report_prints(tmp_path):
    printed = []
    tables = {
        "seeds.csv": ["seed_*"], "folds.csv": ["folds"], "frozen.csv": ["frozen"],
        "finetuned.csv": ["pretrained/seed_*"], "clean_runs.csv": ["seed_*", "frozen", "pretrained/seed_*"],
        "earlier_runs.csv": ["random_split/seed_*"], "leaks.csv": ["with_leaks/seed_*"],
    }  # fmt: skip
    for file, patterns in tables.items():
        results = REPOSITORY / "saved_models/results"
        folders = [folder for pattern in patterns for folder in sorted(results.glob(pattern))]
        places = ("--output", tmp_path / file, "--figures-dir", tmp_path)
        result = start("report.py", "--models-dir", *folders, "--published", "--markdown", *places, cwd=tmp_path)
        assert result.returncode == 0
        assert "its runs differ in freeze_to" in result.stderr if len(patterns) > 1 else not result.stderr
        printed += result.stdout.splitlines()
    leak = [sys.executable, REPOSITORY / "benchmarks/leak.py"]
    printed += subprocess.run(leak, capture_output=True, text=True, check=True).stdout.splitlines()
    parts = (
        "results",
        "pretrained-networks",
        "every-image-validated-once",
        "before-random-split-selection-by-plain-accuracy",
        "what-a-leak-does-to-a-score",
    )
    shown = re.findall(r"^\|.*", "\n".join(map(find_section, parts)), re.MULTILINE)
    assert len(shown) > 12
    assert set(shown) <= set(printed)
    assert (tmp_path / "clean_runs.csv").read_bytes() == (REPOSITORY / "clean_runs.csv").read_bytes()


def read_code(anchor):
    return re.search(r"```python\n(.*?)```", find_section(anchor), re.DOTALL)[1]


def test_a_model_is_added_as_told(make_folder, tmp_path):
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


def test_a_dataset_is_added_as_told(tmp_path):
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
    """A folder as a reader has it: the sources, a virtual environment, a trained run, and images to ask about."""
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


def test_an_exported_model_is_used_as_told(place):
    pytest.importorskip("onnxscript", reason="requirements-export.txt is not installed")
    asked = start("predict.py", "saved_models/RUN", "photo.jpg", "--json", "--export", "model.onnx", cwd=place)
    assert asked.returncode == 0, asked.stderr
    code = read_code("predict-srcpredictpy")
    printed = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=True).stdout
    (entry,) = json.loads(asked.stdout)
    found = re.findall(r"'(\w+)': np.float32\((.+?)\)", printed)
    assert {name: float(share) for name, share in found}[entry["class"]] == pytest.approx(entry["confidence"], abs=0.01)
    assert len(found) == 2


@pytest.mark.slow
def test_blocks_marked_as_runnable_run(place):
    blocks = re.findall(r"^```bash runnable\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 3
    printed = ""
    for block in blocks:
        block = re.sub(r" -e \d+ ", " -e 1 ", block)
        result = subprocess.run(
            ["bash", "-euc", block], cwd=place, env={**os.environ, "WANDB_MODE": "disabled"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 0, f"{block}\n{result.stderr}"
        printed += result.stdout
    assert "now      Axe: 40 to train on, 120 augmented, 12 to test on" in printed
    assert "leaks: 0" in printed
    assert len((place / "answers.csv").read_text().splitlines()) == 5
    assert len(list((place / "maps").rglob("*.png"))) == 4
