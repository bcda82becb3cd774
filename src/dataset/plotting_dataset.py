"""Draw the figures of a dataset: class sizes, image sizes, padding and augmentation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from common import list_counts, pluralise, printable
from dataset.examining import Examined, examine, find_white_level
from dataset.folders import AUGMENTED_SUFFIX, class_images, class_names, source_stem, stem_of
from dataset.reading import WHITE, read_image, resize_or_pad_image, upright_rgb
from plotting import BLUE, GREEN, GREY, ORANGE, legible, name_ticks, new_figure, save_figures, short_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

_EXAMPLES = 3  # images per class, each beside its padded copy
_LARGEST_SHOWN = 1000  # pixels of the longer side, approximately
_SOURCES = 2  # per class, whose augmented images are shown
_AUGMENTED_SHOWN = 5  # per source
_CLASSES_SHOWN = 6  # in a figure of images
_FORMATS_SHOWN = 12  # classes in the figure of image sizes
_CLASSES_NUMBERED = 20  # up to which each bar has its number
_WIDEST = 14  # inches
_LONGEST_TITLE = 12  # characters of a file name above a small image


class ClassSizes(NamedTuple):
    """Numbers of images of a class: as found, and for training, augmented, and for testing after preparation."""

    found: int
    kept: int
    augmented: int
    testing: int


def plot_dataset(dataset_dir: Path, sizes: Mapping[str, ClassSizes], figures_dir: Path) -> list[Path]:
    """Draw all figures of a dataset, which has one folder per class, and return the PNG files."""
    files = {name: class_images(dataset_dir, name) for name in class_names(dataset_dir)}
    white_level = find_white_level([path for paths in files.values() for path in paths])
    images = {name: examine(paths, white_level=white_level)[0] for name, paths in files.items()}
    augmented = {name: paths for name in files if (paths := class_images(dataset_dir, name + AUGMENTED_SUFFIX))}
    figures = {
        "class_sizes": draw_class_sizes(sizes),
        "image_formats": draw_formats(images),
        "original_padded_images": draw_padded(images, white_level),
    }
    if augmented:
        figures["augmented_images"] = draw_augmented(dataset_dir, augmented, white_level)
    else:
        (figures_dir / "augmented_images.png").unlink(missing_ok=True)  # from an earlier run
    return save_figures(figures, figures_dir)


def draw_class_sizes(sizes: Mapping[str, ClassSizes]) -> Figure:
    """Draw bars for each class: its images as found, and what they became."""
    many = len(sizes) > _CLASSES_NUMBERED
    figure = new_figure(_WIDEST if many else max(6.5, 1.6 * len(sizes) + 2), 4.5)
    axes = figure.subplots()
    width = 0.27
    for offset, *stack in (
        (-width, ("found", "as found", GREY)),
        (0, ("kept", "training", BLUE), ("augmented", "training, augmented", ORANGE)),
        (width, ("testing", "test", GREEN)),
    ):
        bottom = np.zeros(len(sizes), dtype=int)
        for field, text, colour in stack:
            heights = np.array([getattr(size, field) for size in sizes.values()])
            style = {"color": colour, "label": text, "edgecolor": None if many else "white"}
            bars = axes.bar(np.arange(len(sizes)) + offset, heights, width, bottom, **style)
            bottom += heights
        if not many:
            numbers = [str(total) for total in bottom]
            if offset == 0:
                numbers = [f"{size.kept}+{size.augmented}".removesuffix("+0") for size in sizes.values()]
            axes.bar_label(bars, numbers, fontsize=9 if len(sizes) <= 8 else 7)
    name_ticks(axes.xaxis, list(sizes), rotation=90 if many else 0, fontsize=7 if many else None)
    axes.set(ylabel="images", title="Class sizes before and after preparation")
    axes.set_ylim(0, 1.08 * max(max(size.found, size.kept + size.augmented) for size in sizes.values()))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def draw_formats(images: Mapping[str, Sequence[Examined]]) -> Figure:
    """Draw a dot at each width and height of the images of the first classes, and count sizes and file formats."""
    names = list(images)[:_FORMATS_SHOWN]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = new_figure(3.7 * columns + 0.6, 4.1 * rows + 0.7)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    sides = [side for name in names for image in images[name] for side in image.size]
    for axes, name in zip(grid.flat, names, strict=False):
        sizes = Counter(image.size for image in images[name])
        _draw_sizes(axes, sizes, min(sides), max(sides))
        counts = f"{pluralise(len(images[name]), 'image')}, {pluralise(len(sizes), 'size')}"
        forms = list_counts(dict(Counter(image.form for image in images[name]).most_common(3)))
        axes.set_title(f"{short_label(name)}: {counts}\n{forms}", fontsize=10)
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    figure.supxlabel("width in pixels, logarithmic")
    figure.supylabel("height in pixels, logarithmic")
    some = f" ({len(names)} of {len(images)} classes)" if len(images) > len(names) else ""
    figure.suptitle(f"Image sizes{some}: one dot per size, larger for several images; the line marks squares")
    return figure


def _draw_sizes(axes: Axes, counted: Counter[tuple[int, int]], least: int, most: int) -> None:
    """Draw a dot for each size of a class on logarithmic axes, which show sides from `least` to `most`."""
    from matplotlib.ticker import LogLocator

    limits = (least / 1.3, most * 1.3)
    areas = [12 * count for count in counted.values()]
    axes.plot(limits, limits, color=GREY, linewidth=0.8, zorder=0)
    axes.scatter(*zip(*counted, strict=True), areas, BLUE, alpha=0.35 if len(counted) > 200 else 0.6, linewidths=0)
    axes.set(xscale="log", yscale="log", xlim=limits, ylim=limits, box_aspect=1)
    axes.grid(alpha=0.3)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(10, (1, 2, 3, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
        if most < 2 * least:  # otherwise there may be no tick near the dots
            axis.set_ticks(sorted({least, most}))


def draw_padded(images: Mapping[str, Sequence[Examined]], white_level: int = WHITE) -> Figure:
    """Draw images of the first classes, each beside its resized and padded copy."""
    names = list(images)[:_CLASSES_SHOWN]
    figure, grid = _picture_grid(names, 2 * _EXAMPLES)
    for row, name in zip(grid, names, strict=True):
        members = images[name]
        spread = np.linspace(0, len(members) - 1, min(_EXAMPLES, len(members))).round().astype(int)
        for column, index in enumerate(spread):
            image = upright_rgb(read_image(members[index].path, white_level))
            # Matplotlib needs many times the memory of an image, and a figure cannot show more pixels than this.
            shown = image.reduce(max(1, max(image.size) // _LARGEST_SHOWN))
            _show(row[2 * column], shown, f"{image.width}x{image.height}")
            padded = resize_or_pad_image(image)
            _show(row[2 * column + 1], padded, f"{padded.width}x{padded.height}")
    figure.suptitle("Images, and their resized and padded copies")
    return figure


def draw_augmented(dataset_dir: Path, augmented: Mapping[str, Sequence[Path]], white_level: int = WHITE) -> Figure:
    """Draw images of the first augmented classes, each beside images that were made from it."""
    rows = []
    for name in list(augmented)[:_CLASSES_SHOWN]:
        files = {stem_of(path): path for path in class_images(dataset_dir, name)}
        counts = Counter(source for path in augmented[name] if (source := source_stem(path)) in files)
        for source, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_SOURCES]:
            made_from_it = [path for path in augmented[name] if source_stem(path) == source]
            rows.append((name, files[source], made_from_it[:_AUGMENTED_SHOWN]))
    figure, grid = _picture_grid([name for name, *_ in rows], 1 + max(len(made) for *_, made in rows))
    for axes, (_, source, made) in zip(grid, rows, strict=True):
        stem = legible(printable(source.stem))
        short = stem if len(stem) <= _LONGEST_TITLE else f"{stem[:4]}\u2026{stem[5 - _LONGEST_TITLE :]}"
        _show(axes[0], resize_or_pad_image(read_image(source, white_level)), f"source {short}")
        for column, path in enumerate(made, 1):
            _show(axes[column], read_image(path), f"augmented {path.stem.rpartition('_')[2]}")
    figure.suptitle("Images, and augmented images made from them")
    return figure


def _picture_grid(names: Sequence[str], columns: int) -> tuple[Figure, np.ndarray]:
    figure = new_figure(1.45 * columns + 0.4, 1.75 * len(names) + 0.5)
    grid = figure.subplots(len(names), columns, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for row, name in zip(grid, names, strict=True):
        row[0].set_ylabel(short_label(name), fontsize=12)
    return figure, grid


def _show(axes: Axes, image: Image.Image, title: str) -> None:
    axes.imshow(image)
    axes.set_title(title, fontsize=9)
