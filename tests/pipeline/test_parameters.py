"""Parameter files contain the specified grid, and errors name file, line and field."""

import dataclasses
from collections import Counter

import pytest

from common import UserError
from pipeline.parameters import FIELDS, read_parameters, write_line, write_parameters
from pipeline.settings import Settings

OTHERS = {field.name: field.default for field in dataclasses.fields(Settings) if field.name not in FIELDS}
LINE = "CustomVGG True 2 32 0.1 0.001 0.99 false True"


@pytest.fixture
def parameter_file(tmp_path):
    def write(*lines):
        path = tmp_path / "runs.txt"
        path.write_text("".join(line + "\n" for line in lines))
        return path

    return write


def test_files_contain_the_specified_grid(tmp_path):
    assert write_parameters(tmp_path) == len(list(tmp_path.iterdir())) == 35 + 18
    files = [tmp_path / f"hyperparameters_{number}.txt" for number in range(1, 36)]
    lines = [path.read_text().splitlines() for path in files]
    assert [len(part) for part in lines] == [30] * 34 + [20]
    expected = set()
    for model in ("VGG True", "VGG False", "VGGAdapted True", "VGGAdapted False", "CustomVGG True", "CustomVGG False",
                  "ResNet False", "CNNBasic False"):  # fmt: skip
        for rate in ["0.01", "0.001", "0.0001", "1e-05"]:
            if rate == "0.01" and "VGG" in model:
                continue
            for decay in ["0.01", "0.001", "0.0001", "1e-05"]:
                for gamma in ["0.95", "0.96", "0.97", "0.98", "0.99"]:
                    for augmentation in ("True", "False"):
                        expected.add(f"{model} 80 32 {rate} {decay} {gamma} {augmentation} True")
    every = [line for part in lines for line in part]
    assert len(every) == len(set(every)) == 1040
    assert set(every) == expected
    assert Counter(line.split()[0] for line in every) == {
        "VGG": 240, "VGGAdapted": 240, "CustomVGG": 240, "ResNet": 160, "CNNBasic": 160,
    }  # fmt: skip


def test_files_of_the_pretrained_backbone(tmp_path):
    """Frozen, fine-tuned and from scratch, each run in its own folder."""
    write_parameters(tmp_path)
    runs = [
        settings
        for number in range(36, 54)
        for settings in read_parameters(tmp_path / f"hyperparameters_{number}.txt", OTHERS)
    ]
    assert len({settings.run_dir for settings in runs}) == len(runs) == 480
    kinds = Counter((settings.pretrained, settings.freeze_to) for settings in runs)
    assert kinds == {(True, "backbone"): 160, (True, None): 160, (False, None): 160}
    assert {(settings.model_type, settings.recipe, settings.num_epochs) for settings in runs} == {
        ("EfficientNetLite0", "default", 80)
    }


def test_flags_in_a_line_override_those_of_the_program(parameter_file):
    file = parameter_file(f"{LINE} --freeze-to conv3 --seed 7 -o saved", LINE)
    flagged, plain = read_parameters(file, {**OTHERS, "seed": 5})
    assert (flagged.freeze_to, flagged.seed, str(flagged.output_dir)) == ("conv3", 7, "saved")
    assert (plain.freeze_to, plain.seed, plain.output_dir) == (None, 5, Settings.output_dir)


def test_written_line_is_read_back(parameter_file):
    (settings,) = read_parameters(parameter_file("ResNet False 3 8 0.1 0 1 True False"), OTHERS)
    assert settings == Settings(
        model_type="ResNet18", num_epochs=3, batch_size=8, learning_rate=0.1, weight_decay=0, gamma=1,
        data_augmentation=True,
    )  # fmt: skip
    assert read_parameters(parameter_file(write_line(settings)), OTHERS) == [settings]


@pytest.mark.parametrize(("yes", "no"), [("True", "False"), ("true", "false"), ("1", "0")])
def test_spellings_of_true_and_false(parameter_file, yes, no):
    (settings,) = read_parameters(parameter_file("", f"  VGG {yes} 2 32 0.1 0.001 0.99 {no}   {yes} "), OTHERS)
    assert (settings.pretrained, settings.data_augmentation, settings.plots) == (True, False, True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (LINE.replace("CustomVGG", "Custom"), "model_type Custom: unknown model 'Custom': choose VGG"),
        (LINE.replace("True 2", "yes 2"), "pretrained yes: must be True or False"),
        (LINE.replace(" 2 ", " two "), "num_epochs two: must be a whole number"),
        (LINE.replace(" 2 ", " 0 "), "-e/--num-epochs 0: must be at least 1"),
        (LINE.replace(" 0.1 ", " 0,1 "), "learning_rate 0,1: must be a number"),
        (LINE.replace(" 0.1 ", " nan "), "-l/--learning-rate nan: must be a number above 0"),
        (LINE.replace(" false", " 2"), "data_augmentation 2: must be True or False"),
        (LINE + " x", "10 fields instead of 9, separated by spaces: model_type pretrained num_epochs batch_size"),
        ("VGG", "1 fields instead of 9"),
        (LINE + " --nonsense 3", "unrecognized arguments: --nonsense 3"),
        (LINE + " --seed x", "argument --seed: invalid int value: 'x'"),
        (LINE.rpartition(" ")[0] + " --seed 1", "8 fields instead of 9"),
    ],
)
def test_malformed_line_is_reported(parameter_file, line, message):
    path = parameter_file(LINE, "", line)
    with pytest.raises(UserError) as caught:
        read_parameters(path, OTHERS)
    assert str(caught.value).startswith(f"{path}:3: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_encodings_and_line_ends(tmp_path, encoding, end):
    lines = ["# first try: größer", LINE.replace(" ", "\t"), "  # another", "", LINE.replace("0.1", "0.2")]
    (tmp_path / "runs.txt").write_bytes(end.join(lines).encode(encoding))
    assert [settings.learning_rate for settings in read_parameters(tmp_path / "runs.txt", OTHERS)] == [0.1, 0.2]


def test_line_numbers_count_comments(parameter_file):
    with pytest.raises(UserError, match=r"runs.txt:3: 1 fields instead of 9, separated by spaces: model_type"):
        read_parameters(parameter_file("# comment", LINE, LINE.replace(" ", ",")), OTHERS)


def test_unreadable_files_are_reported(tmp_path):
    with pytest.raises(UserError, match=r"runs.txt cannot be read: No such file"):
        read_parameters(tmp_path / "runs.txt", OTHERS)
    (tmp_path / "runs.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"runs.txt cannot be read: it is not text"):
        read_parameters(tmp_path / "runs.txt", OTHERS)


def test_weights_apply_to_pretrained_lines_only(parameter_file, tmp_path):
    file = parameter_file(LINE, LINE.replace("True", "False", 1))
    pretrained, scratch = read_parameters(file, {**OTHERS, "weights": tmp_path / "vgg19.pth"})
    assert pretrained.weights == tmp_path / "vgg19.pth"
    assert scratch.weights is None
