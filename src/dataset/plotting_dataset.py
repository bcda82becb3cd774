"""The figures of a dataset: class sizes, forms of images, padding, augmentation; of array sets, side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common import printable
from dataset.array_images import DARK_SHARE, ArraySet
from dataset.examining import examine, find_white
from dataset.folders import AUGMENTED, class_folder, class_names, image_files, source_stem, stem_of
from dataset.reading import WHITE, read_image, resize_or_pad_image, upright_rgb
from plotting import BLUE, GREEN, GREY, ORANGE, VERMILION, legible, name_ticks, new_figure, save_figure, short_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from PIL import Image


_EXAMPLES = 3  # pairs a class
_LARGEST_SHOWN = 1000  # pixels of the longer side, about
_SOURCES = 2  # of a class, whose augmented images are shown
_AUGMENTED_SHOWN = 5  # of a source
_CLASSES_SHOWN = 6  # in a figure of pictures
_FORMATS_SHOWN = 12  # classes, in a figure of the images' sizes
_CLASSES_NUMBERED = 20  # up to which each bar has its number
_ARRAY_CLASSES_SHOWN = 20
_WIDEST = 14  # inches
_IN_A_ROW = 5  # images of a class, from the start of an array set, from its middle and from its end
_LONGEST_TITLE = 12  # letters of a file's name above a small picture
_GAP = "#a9c4de"  # between array images, so that neither black nor white ones run into it


@dataclass(frozen=True)
class ClassSizes:
    """How many images of a class lie where.

    Attributes:
        found: before anything was moved or made.
        kept: to train on.
        augmented: made from those.
        testing: to test on.
    """

    found: int
    kept: int
    augmented: int
    testing: int


def plot_dataset(dataset_dir: Path, sizes: Mapping[str, ClassSizes], figures_dir: Path) -> list[Path]:
    """Draws all figures of a dataset.

    Args:
        dataset_dir: a folder a class.
        sizes: of each class.
        figures_dir: where the PNGs go.

    Returns:
        The PNGs.
    """
    names = class_names(dataset_dir)
    files = {name: image_files(class_folder(dataset_dir, name)) for name in names}
    white = find_white([path for paths in files.values() for path in paths])
    images = {name: examine(files[name], white=white)[0] for name in names}
    forms = {name: [image.size for image in members] for name, members in images.items()}
    figures = {
        "class_sizes": draw_class_sizes(sizes),
        "image_formats": draw_formats(forms, {name: Counter(i.form for i in images[name]) for name in names}),
        "original_padded_images": draw_padded({name: [i.path for i in images[name]] for name in names}, white),
    }
    augmented = {name: image_files(class_folder(dataset_dir, name + AUGMENTED)) for name in names}
    if any(augmented.values()):
        figures["augmented_images"] = draw_augmented(dataset_dir, {n: a for n, a in augmented.items() if a}, white)
    paths = _save_all(figures, figures_dir)
    if "augmented_images" not in figures:
        (figures_dir / "augmented_images.png").unlink(missing_ok=True)  # it would show another dataset's
    return paths


def plot_array_sets(sets: Sequence[ArraySet], figures_dir: Path) -> list[Path]:
    """Draws examples, intensities, and mean and variance images of sets side by side; returns the PNGs."""
    figures = {
        "examples": draw_array_examples(sets),
        "intensities": draw_intensities(sets),
        "means": draw_means(sets),
    }
    return _save_all(figures, figures_dir)


def _save_all(figures: Mapping[str, Figure], figures_dir: Path) -> list[Path]:
    paths = [figures_dir / f"{name}.png" for name in figures]
    for figure, path in zip(figures.values(), paths, strict=True):
        save_figure(figure, path)
    return paths


def draw_class_sizes(sizes: Mapping[str, ClassSizes]) -> Figure:
    """Bars of each class: as it was found, and what became of it. Where classes are many, without numbers."""
    many = len(sizes) > _CLASSES_NUMBERED
    figure = new_figure(_WIDEST if many else max(6.5, 1.6 * len(sizes) + 2), 4.5)
    axes = figure.subplots()
    places = np.arange(len(sizes))
    width = 0.27
    stacks = (
        (-width, (("found", "as found", GREY),)),
        (0, (("kept", "to train on", BLUE), ("augmented", "augmented, to train on", ORANGE))),
        (width, (("testing", "to test on", GREEN),)),
    )
    for offset, parts in stacks:
        bottom = np.zeros(len(sizes), dtype=int)
        for field, text, colour in parts:
            heights = np.array([getattr(size, field) for size in sizes.values()])
            axes.bar(
                places + offset, heights, width, bottom, color=colour, label=text, edgecolor=None if many else "white"
            )
            bottom += heights
        for place, total, size in zip(places, bottom, sizes.values(), strict=True):
            if many:
                break
            text = f"{size.kept}+{size.augmented}" if len(parts) > 1 and size.augmented else f"{total}"
            axes.text(place + offset, total, text, ha="center", va="bottom", fontsize=9 if len(sizes) <= 8 else 7)
    name_ticks(axes.xaxis, list(sizes), rotation=90 if many else 0, fontsize=7 if many else None)
    axes.set(ylabel="images", title="Class sizes before and after")
    axes.set_ylim(0, 1.08 * max(max(size.found, size.kept + size.augmented) for size in sizes.values()))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def draw_formats(sizes: Mapping[str, Sequence[tuple[int, int]]], forms: Mapping[str, Counter[str]]) -> Figure:
    """Dots at the widths and heights of the images; above them, how many different ones, and of which file formats.

    Of many classes the first ones are drawn.
    """
    count = len(sizes)
    sizes = dict(list(sizes.items())[:_FORMATS_SHOWN])
    columns = min(3, len(sizes))
    rows = -(-len(sizes) // columns)
    figure = new_figure(3.7 * columns + 0.6, 4.1 * rows + 0.7)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    sides = [side for members in sizes.values() for size in members for side in size]
    limits = (min(sides) / 1.3, max(sides) * 1.3)
    for axes, (name, members) in zip(grid.flat, sizes.items(), strict=False):
        counted = Counter(members)
        areas = [12 * count for count in counted.values()]
        axes.plot(limits, limits, color=GREY, linewidth=0.8, zorder=0)
        axes.scatter(*zip(*counted, strict=True), areas, BLUE, alpha=0.35 if len(counted) > 200 else 0.6, linewidths=0)
        files = ", ".join(f"{count} {form}" for form, count in forms[name].most_common(3))
        many = "s" * (len(counted) > 1)
        axes.set_title(f"{short_label(name)}: {len(members)} images, {len(counted)} size{many}\n{files}", fontsize=10)
        axes.set(xscale="log", yscale="log", xlim=limits, ylim=limits, box_aspect=1)
        axes.grid(alpha=0.3)
        _use_plain_numbers(axes)
        if max(sides) < 2 * min(sides):  # else there may be no tick near the dots
            axes.set(xticks=sorted({min(sides), max(sides)}), yticks=sorted({min(sides), max(sides)}))
    for axes in grid.flat[len(sizes) :]:
        axes.set_visible(False)
    figure.supxlabel("width in pixels, logarithmic")
    figure.supylabel("height in pixels, logarithmic")
    some = f" ({len(sizes)} of {count} classes)" if count > len(sizes) else ""
    figure.suptitle(
        f"Sizes of the images{some}: a dot a size, larger where several images have it; on the line: squares"
    )
    return figure


def draw_padded(paths: Mapping[str, Sequence[Path]], white: int = WHITE) -> Figure:
    """Images of every class as they are, each beside what the models get."""
    names = list(paths)[:_CLASSES_SHOWN]
    figure, grid = _picture_grid(names, 2 * _EXAMPLES)
    for row, name in zip(grid, names, strict=True):
        for place, path in enumerate(_spread(paths[name], _EXAMPLES)):
            image = upright_rgb(read_image(path, white))
            _show(row[2 * place], _shrink(image), f"{image.width}x{image.height}")
            padded = resize_or_pad_image(image)
            _show(row[2 * place + 1], padded, f"{padded.width}x{padded.height}")
    figure.suptitle("Images as they are, and resized and padded")
    return figure


def draw_augmented(dataset_dir: Path, augmented: Mapping[str, Sequence[Path]], white: int = WHITE) -> Figure:
    """Images of every augmented class, each beside images that were made from it."""
    rows = []
    for name in list(augmented)[:_CLASSES_SHOWN]:
        files = {stem_of(path): path for path in image_files(class_folder(dataset_dir, name))}
        made = Counter(source for path in augmented[name] if (source := source_stem(path)) in files)
        for source, _ in sorted(made.items(), key=lambda item: (-item[1], item[0]))[:_SOURCES]:
            of_source = [path for path in augmented[name] if source_stem(path) == source]
            rows.append((name, files[source], of_source[:_AUGMENTED_SHOWN]))
    figure, grid = _picture_grid([name for name, *_ in rows], 1 + max(len(made) for *_, made in rows))
    for axes, (_, source, made) in zip(grid, rows, strict=True):
        _show(axes[0], resize_or_pad_image(read_image(source, white)), f"source {_fit(printable(source.stem))}")
        for place, path in enumerate(made):
            _show(axes[1 + place], read_image(path), f"augmented {path.stem.rpartition('_')[2]}")
    figure.suptitle("Images, and what augmentation made of them")
    return figure


def _fit(name: str) -> str:
    """A file's name as the width of a small picture has room for: its begin and its end."""
    text = legible(name)
    return text if len(text) <= _LONGEST_TITLE else f"{text[:4]}\u2026{text[5 - _LONGEST_TITLE :]}"


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


def _shrink(image: Image.Image) -> Image.Image:
    """An image of no more pixels than a figure can show: Matplotlib takes many times the memory of what it is given."""
    return image.reduce(max(1, max(image.size) // _LARGEST_SHOWN))


def _spread(paths: Sequence[Path], count: int) -> list[Path]:
    """So many files, evenly from among all."""
    places = np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)
    return [paths[place] for place in places]


def _use_plain_numbers(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(10, (1, 2, 3, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def draw_array_examples(sets: Sequence[ArraySet]) -> Figure:
    """Images of every class: a column of panels a set, with the first, the middle and the last ones."""
    names = _all_classes(sets)
    cell = 0.42
    longest = max(len(short_label(name)) for name in names)
    figure = new_figure(
        len(sets) * (cell * _IN_A_ROW + 0.25) + 0.6 + 0.08 * longest, 3 * (cell * len(names) + 0.2) + 0.8
    )
    grid = figure.subplots(3, len(sets), squeeze=False)
    for column, array_set in zip(grid.T, sets, strict=True):
        thirds = [np.array_split(array_set.of_class(name), 3) for name in names]
        for part, axes in enumerate(column):
            _show_tiles(
                axes, [_choose_part(third[part], part) for third in thirds], array_set.pixels.shape[1:], "gray", 255
            )
        column[0].set_title(f"{array_set.name}\n{len(array_set.pixels):,} images", fontsize=11)
    for axes, title in zip(grid[:, 0], ("first", "middle", "last"), strict=True):
        name_ticks(axes.yaxis, names, np.arange(len(names)) + 0.5)
        axes.set_ylabel(title, fontsize=11)
    figure.suptitle("Examples of each class")
    return figure


def draw_intensities(sets: Sequence[ArraySet]) -> Figure:
    """Two histograms a set, on shared axes: the values of all pixels, and how much of each image is dark."""
    from matplotlib.ticker import PercentFormatter

    figure = new_figure(max(5, 2.6 * len(sets) + 1.2), 5.2)
    grid = figure.subplots(2, len(sets), sharey="row", squeeze=False)
    for (above, below), array_set in zip(grid.T, sets, strict=True):
        levels = np.bincount(array_set.pixels.ravel(), minlength=256).reshape(16, 16).sum(axis=1)
        above.bar(np.arange(8, 256, 16), levels / levels.sum(), 16, color=BLUE, edgecolor="white", linewidth=0.5)
        shares = array_set.dark_shares
        above.set_title(f"{array_set.name}\n{shares.mean():.0%} of the pixels are dark", fontsize=11)
        above.set(xlim=(0, 256), xticks=[0, 128, 255])
        counts, edges = np.histogram(shares, 25, (0, 1))
        below.bar(edges[:-1], counts / counts.sum(), 0.04, align="edge", color=ORANGE, edgecolor="white", linewidth=0.5)
        below.axvline(DARK_SHARE, color=VERMILION, linestyle="--", linewidth=1.2)
        below.set_title(f"{np.mean(shares <= DARK_SHARE):.0%} of the images on white", fontsize=11)
        below.set(xlim=(0, 1), xticks=[0, 0.5, 1])
        below.xaxis.set_major_formatter(PercentFormatter(1))
    for axes, label in zip(grid[:, 0], ("share of pixels", "share of images"), strict=True):
        axes.set_ylabel(label)
        axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    for row, label in zip(
        grid, ("grey value of a pixel (0 is black)", "dark pixels of an image (white, if at most half)"), strict=True
    ):
        row[len(sets) // 2].set_xlabel(label)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_means(sets: Sequence[ArraySet]) -> Figure:
    """The mean and the variance image of each class, of values from 0 to 1: a row a set; below, the numbers."""
    names = _all_classes(sets)
    cell = 0.75 if len(names) <= 6 else 0.55
    longest, longest_set = max(len(short_label(name)) for name in names), max(len(array_set.name) for array_set in sets)
    upright = longest > 10 * cell  # or the names would run into one another
    figure = new_figure(
        max(4.5, 2 * (cell * len(names) + 0.2)) + 0.9 + 0.08 * longest_set,
        len(sets) * (cell + 0.3) + 1.5 + (0.08 * longest if upright else 0),
    )
    grid = figure.subplots(len(sets) + 1, 2, height_ratios=[1] * len(sets) + [0.1])
    for row, array_set in zip(grid[:-1], sets, strict=True):
        members = [array_set.of_class(name) for name in names]
        shape = array_set.pixels.shape[1:]
        means = [images.mean(axis=0) / 255 if len(images) else None for images in members]
        variances = [images.var(axis=0) / 255**2 if len(images) else None for images in members]
        shown = [_show_tiles(row[0], [means], shape, "gray", 1), _show_tiles(row[1], [variances], shape, "magma", 0.25)]
        row[0].set_ylabel(array_set.name, fontsize=11, rotation=0, ha="right", va="center")
        for place, images in enumerate(members):
            row[0].text(place + 0.5, 1.04, f"{len(images):,}", ha="center", va="top", fontsize=8)
    explained = (
        ("Mean (below: number of images)", "0 is black, 1 is white"),
        ("Variance", "0.25: half black, half white"),
    )
    for column, image, (title, label) in zip(grid.T, shown, explained, strict=True):
        column[0].xaxis.set_label_position("top")
        column[0].xaxis.tick_top()
        name_ticks(column[0].xaxis, names, np.arange(len(names)) + 0.5, rotation=90 if upright else 0)
        column[0].set_xlabel(title, fontsize=12)
        column[0].tick_params(length=0)
        figure.colorbar(image, cax=column[-1], orientation="horizontal").set_label(label, fontsize=9)
    return figure


def _all_classes(sets: Sequence[ArraySet]) -> list[str]:
    """The classes of some sets, of many the first ones."""
    return sorted(set().union(*(array_set.labels.tolist() for array_set in sets)))[:_ARRAY_CLASSES_SHOWN]


def _choose_part(images: np.ndarray, part: int) -> list[np.ndarray | None]:
    """The first, the middle or the last five of some images; None in place of those that are not there."""
    spare = max(0, len(images) - _IN_A_ROW)
    chosen = images[part * spare // 2 :][:_IN_A_ROW]
    return [*chosen, *[None] * (_IN_A_ROW - len(chosen))]


def _show_tiles(
    axes: Axes, rows: Sequence[Sequence[np.ndarray | None]], shape: tuple[int, int], colours: str, white: float
) -> AxesImage:
    """Shows rows of images of one shape with gaps between them, each over one unit of the axes."""
    import matplotlib

    (height, width), gap = shape, max(1, shape[0] // 14)
    tiled = np.full((len(rows) * (height + 2 * gap), len(rows[0]) * (width + 2 * gap)), np.nan, dtype=np.float32)
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            if image is not None:
                top, left = row * (height + 2 * gap) + gap, column * (width + 2 * gap) + gap
                tiled[top : top + height, left : left + width] = image
    axes.set(xticks=[], yticks=[])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    shades = matplotlib.colormaps[colours].resampled(64).with_extremes(bad=_GAP)  # more would only make large files
    extent = (0, len(rows[0]), len(rows), 0)
    return axes.imshow(tiled, shades, vmin=0, vmax=white, interpolation="nearest", extent=extent, aspect=height / width)
