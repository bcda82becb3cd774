"""Names in figures use system fonts, or numbers that a message explains."""

import logging

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image

import plotting
from pipeline.figures import plot_confusion
from plotting import legible, name_ticks, new_figure, save_figure, short_label


@pytest.fixture(autouse=True)
def fonts(monkeypatch):
    """The list of system fonts, at first empty."""
    files = []
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: files)
    for name, empty in (("_numbers", {}), ("_reported", set()), ("_fonts", []), ("_unavailable", set())):
        monkeypatch.setattr(plotting, name, empty)
    return files


def make_font(file, letters):
    """Writes a font in which each of these letters is a black square."""
    glyphs = [".notdef", *(f"u{ord(letter):X}" for letter in letters)]
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(glyphs)
    builder.setupCharacterMap({ord(letter): f"u{ord(letter):X}" for letter in letters})
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in ((100, 700), (800, 700), (800, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square = pen.glyph()
    builder.setupGlyf(dict.fromkeys(glyphs, square))
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (900, 100)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": file.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(file)
    return str(file)


def draw(title, path):
    figure = new_figure(3, 1)
    figure.suptitle(title)
    save_figure(figure, path)
    return Image.open(path)


def test_words_without_a_font_become_numbers(tmp_path, caplog):
    names = ["猫", "Käse", "cat_犬 (80%)", "猫, 犬", "Ναί да שלום", "ネコ"]
    assert [legible(name) for name in names] == ["#1", "Käse", "cat_#2 (80%)", "#1, #2", "Ναί да שלום", "#3"]
    for _ in range(2):
        draw("猫", tmp_path / "figure.png")
    assert caplog.messages == [
        "figures show #1 for 猫, #2 for 犬, #3 for ネコ: no font here has glyphs for these letters "
        "(Debian, Ubuntu: apt install fonts-noto-core fonts-noto-cjk)"
    ]
    assert draw("猫", tmp_path / "figure.png").tobytes() == draw("#1", tmp_path / "other.png").tobytes()


def test_the_message_lists_only_the_first_of_many_words(tmp_path, caplog):
    for number in range(300):
        legible(chr(0x4E00 + number))
    draw("", tmp_path / "figure.png")
    (message,) = caplog.messages
    assert "#10 for " in message
    assert "#11 for " not in message
    assert " and 290 more: " in message


def test_system_fonts_are_used(fonts, tmp_path, caplog):
    fonts += [make_font(tmp_path / "some.ttf", "猫犬"), make_font(tmp_path / "one.ttf", "猫鳥"), __file__]
    assert [legible(name) for name in ("猫犬", "鳥", "魚")] == ["猫犬", "鳥", "#1"]
    drawn = draw("猫", tmp_path / "figure.png")
    dark = np.asarray(drawn.convert("L")) < 128
    rows, columns = np.flatnonzero(dark.any(axis=1)), np.flatnonzero(dark.any(axis=0))
    assert dark[rows[1] : rows[-1], columns[1] : columns[-1]].all()  # a square, neither a number nor an empty box
    assert "#1 for 魚" in caplog.text
    assert "猫" not in caplog.text


def test_a_figure_in_ascii_does_not_depend_on_system_fonts(fonts, tmp_path):
    before = draw("plain", tmp_path / "figure.png").tobytes()
    fonts.append(make_font(tmp_path / "some.ttf", "猫abcdefghijklmnop"))
    legible("猫")
    assert draw("plain", tmp_path / "figure.png").tobytes() == before


def test_classes_without_a_font_are_numbered_in_a_confusion_matrix(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    for names in (["猫", "犬"], ["#1", "#2"]):
        plot_confusion(np.array([[3, 1], [0, 2]]), names, "", tmp_path / f"{names[0]}.png")
    first, second = (Image.open(tmp_path / f"{name}.png").tobytes() for name in ("猫", "#1"))
    assert first == second
    assert len(caplog.messages) == 1


def test_names_along_an_axis():
    axes = new_figure(4, 4).subplots()
    axes.set_xlabel("predicted")
    name_ticks(axes.xaxis, ["a", "x" * 100])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["a", "x" * 23 + "…"]
    assert short_label("x" * 24) == "x" * 24
    axes = new_figure(4, 4).subplots()
    axes.set_xlabel("predicted")
    name_ticks(axes.xaxis, [f"class {number}" for number in range(300)])
    assert axes.get_xlabel() == "predicted, 300 classes in the order of their names"
    assert "class" not in "".join(text.get_text() for text in axes.get_xticklabels())
