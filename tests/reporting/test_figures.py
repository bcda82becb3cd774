"""The figures of a report."""

import dataclasses
import itertools

import pytest
from matplotlib.container import ErrorbarContainer

from pipeline.measures import wilson_interval
from reporting.figures import draw_grid, draw_runs
from synthetic_runs import make_run, run_name


def texts(figure):
    """Return the labels below the bars and the percentages on them."""
    (axes,) = figure.axes
    return [label.get_text() for label in axes.get_xticklabels()], [text.get_text() for text in axes.texts]


def boxes(figure):
    """Return the bounding boxes of all texts, in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (axes,) = figure.axes
    return [
        text.get_window_extent(canvas.get_renderer())
        for text in (*axes.get_xticklabels(), *axes.texts, axes.title, figure.legends[0])
    ]


ODD = [
    make_run(run_name(lr=0.00012345678901234, wd=1.2345678901234e-05, gamma=0.987654321), 1.0, 1.0),
    make_run("a_name_that_tells_no_settings_and_has_no_end_" * 9, 0.6, 0.5),
    make_run("$x_{$ is no formula", 0.05, 0.02),
    make_run("no per-class accuracy", 0.01),
    make_run(run_name("CustomVGG", True, True), 0.0, 0.0),
]


@pytest.mark.parametrize("runs", [ODD, ODD[:1], ODD[1:3]])
@pytest.mark.parametrize("with_groups", [False, True])
def test_figure_texts_do_not_overlap(runs, with_groups):
    figure = draw_runs(runs, "Title", with_groups)
    width, height = figure.get_size_inches() * figure.dpi
    places = boxes(figure)
    assert not any(first.overlaps(second) for first, second in itertools.combinations(places, 2))
    assert all(box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height for box in places)
    assert figure.axes[0].get_ylim() == (0, 1)


def test_bars_show_heights_percentages_and_intervals():
    runs = [make_run(run_name(), 0.8, 0.7, images=100), make_run(run_name(gamma=0.99), 0.6, 0.5, images=100)]
    figure = draw_runs(runs, "Title")
    (axes,) = figure.axes
    assert [bar.get_height() for bar in axes.patches] == [0.8, 0.6, 0.7, 0.5]
    assert texts(figure) == (["gamma 0.95", "gamma 0.99"], ["80.0%", "60.0%", "70.0%", "50.0%"])
    assert axes.get_title() == "Title\nall: from scratch, not augmented, lr 0.001, wd 0.01"
    first, second = [each for each in axes.containers if isinstance(each, ErrorbarContainer)][:2]
    for container, shares in ((first, (0.8, 0.6)), (second, (0.7, 0.5))):
        ends = [segment[:, 1] for segment in container[2][0].get_segments()]
        assert ends == [pytest.approx(wilson_interval(share, 100)) for share in shares]


def test_equal_accuracies_share_one_bar():
    figure = draw_runs([make_run(run_name(), 0.8, 0.8), make_run(run_name(gamma=0.99), 0.6, 0.6)], "Title")
    assert [bar.get_height() for bar in figure.axes[0].patches] == [0.8, 0.6]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "test accuracy, also per class",
        "95% interval",
    ]


def test_figure_shows_chance_and_number_of_test_images():
    runs = [dataclasses.replace(make_run(run_name(), 0.8, images=50), classes=("a", "b", "c", "d"))]
    figure = draw_runs(runs, "Title")
    (axes,) = figure.axes
    (chance,) = [line for line in axes.lines if line.get_label() == "chance"]
    assert list(chance.get_ydata()) == [0.25, 0.25]
    assert axes.get_ylabel() == "accuracy on 50 test images"


def test_grid_shows_the_mean_of_each_cell():
    runs = [
        make_run(run_name(lr=rate, wd=decay, gamma=gamma), accuracy)
        for rate, decay, gamma, accuracy in ((0.1, 0.01, 0.9, 0.5), (0.1, 0.01, 0.8, 0.7), (0.01, 0.02, 0.9, 0.4))
    ]
    figure = draw_grid(runs, "Title")
    cells = [text.get_text() for text in figure.axes[0].texts]
    assert cells == ["no run", "60.0%\n2 runs", "40.0%\n1 run", "no run"]
    labels = [
        [label.get_text() for label in axis.get_ticklabels()] for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis)
    ]
    assert labels == [["0.01", "0.1"], ["0.01", "0.02"]]
    assert draw_grid(runs[:2], "Title") is None


def test_percentage_of_a_low_bar_is_above_its_interval():
    figure = draw_runs([make_run(run_name(), 0.0), make_run(run_name(gamma=0.9), 0.5)], "Title")
    low, high = figure.axes[0].texts
    assert low.get_position()[1] > wilson_interval(0.0, 105)[1]
    assert high.get_position()[1] < wilson_interval(0.5, 105)[0]


def test_overall_figure_shows_groups_and_all_settings():
    runs = [make_run(run_name("ResNet18"), 0.8, group="ResNet"), make_run(run_name("CNNBasic"), 0.7, group="CNNBasic")]
    labels, _ = texts(draw_runs(runs, "Title", with_groups=True))
    assert labels == [f"{name}\nfrom scratch\nnot augmented\nlr 0.001\nwd 0.01\ngamma 0.95"
                      for name in ("ResNet18", "CNNBasic")]  # fmt: skip
