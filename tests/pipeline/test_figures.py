"""The figures of a run can be read."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from pipeline import figures
from pipeline.measures import Calibration

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
    """The figures that were to be saved, drawn, in that order."""
    kept = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, _: kept.append(figure))
    return kept


def test_curves_of_a_run_without_validation(drawn, tmp_path):
    history = [{name: value for name, value in row.items() if not name.startswith("val")} for row in HISTORY]
    figures.plot_curves(history, tmp_path / "curves.png")
    assert [len(axes.lines) for axes in drawn[0].axes] == [1, 1]


def test_no_legend_hides_a_point(drawn, tmp_path):
    figures.plot_curves(HISTORY, tmp_path / "curves.png")
    confidences = np.linspace(0.4, 1, 40)
    figures.plot_reliability(Calibration.of(confidences, confidences > 0.6), "title", tmp_path / "reliability.png")
    for figure, legends in zip(drawn, (2, 1), strict=True):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        all_axes = figure.axes
        found = [legend for legend in (*figure.legends, *(axes.get_legend() for axes in all_axes)) if legend]
        places = [legend.get_window_extent() for legend in found]
        assert len(places) == legends
        for number, place in enumerate(places):
            assert figure.bbox.x0 <= place.x0 < place.x1 <= figure.bbox.x1
            assert figure.bbox.y0 <= place.y0
            others = [*places[:number], *(axes.get_tightbbox() for axes in all_axes if axes.get_legend() is None)]
            assert not any(place.overlaps(other) for other in (*others, *(axes.bbox for axes in all_axes)))
