"""The figures of a run are readable."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from pipeline import figures
from pipeline.calibration import Calibration

HISTORY = [
    {
        "epoch": epoch,
        "train_per_class_loss": 1 / epoch,
        "train_per_class_accuracy": 0.5,
        "val_per_class_loss": 4.0 * (epoch % 2),
        "val_per_class_accuracy": 0.1 * epoch,
    }
    for epoch in range(1, 11)
]


@pytest.fixture
def drawn(monkeypatch):
    """The list of saved figures."""
    kept = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, _: kept.append(figure))
    return kept


def test_curves_without_validation(drawn, tmp_path):
    history = [{name: value for name, value in row.items() if not name.startswith("val")} for row in HISTORY]
    figures.plot_curves(history, tmp_path / "curves.png")
    assert [len(axes.lines) for axes in drawn[0].axes] == [1, 1]


def test_legends_hide_no_points(drawn, tmp_path):
    figures.plot_curves(HISTORY, tmp_path / "curves.png")
    confidences = np.linspace(0.4, 1, 40)
    calibration = Calibration.of(confidences, confidences > 0.6)
    for calibrations in ({"all": calibration}, {"before": calibration, "after": calibration}):
        figures.plot_reliability(calibrations, "title", tmp_path / "reliability.png")
    for figure, legends in zip(drawn, (2, 1, 1), strict=True):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        all_axes = figure.axes
        found = [legend for legend in (*figure.legends, *(axes.get_legend() for axes in all_axes)) if legend]
        boxes = [legend.get_window_extent() for legend in found]
        assert len(boxes) == legends
        for number, box in enumerate(boxes):
            assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
            assert figure.bbox.y0 <= box.y0
            others = [*boxes[:number], *(axes.get_tightbbox() for axes in all_axes if axes.get_legend() is None)]
            assert not any(box.overlaps(other) for other in (*others, *(axes.bbox for axes in all_axes)))


@pytest.mark.parametrize("count", [31, 300, 1000])
def test_a_large_confusion_matrix_has_a_list_of_confusions(drawn, tmp_path, count):
    confusion = np.diag(np.full(count, 9))
    confusion[5, 7], confusion[2, 1] = 4, 3
    names = [f"class {number}" for number in range(count)]
    figures.plot_confusion(confusion, names, "title", tmp_path / "confusion.png")
    (figure,) = drawn
    assert (figure.get_size_inches() <= 20).all()
    texts = [text.get_text() for text in figure.findobj(Text)]
    assert len(texts) < 300
    (listed,) = (text.splitlines() for text in texts if text.startswith("most frequent confusions"))
    assert listed[2:] == ["4 of 13 class 5 as class 7", "3 of 12 class 2 as class 1"]
    FigureCanvasAgg(figure).draw()


def test_a_small_confusion_matrix_shows_numbers(drawn, tmp_path):
    figures.plot_confusion(np.diag([7, 8]), ["a", "b"], "title", tmp_path / "confusion.png")
    assert {"7\n100%", "8\n100%", "0\n0%", "a", "b"} <= {text.get_text() for text in drawn[0].findobj(Text)}
