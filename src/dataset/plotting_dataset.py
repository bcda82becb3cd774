"""Draw the figures of a dataset: class sizes, image sizes, padding and augmentation; and compare array sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from common import list_counts, pluralise, printable
from dataset.examining import Examined, examine, find_white_level
from dataset.folders import AUGMENTED_SUFFIX, class_images, class_names, source_stem, stem_of
from dataset.reading import WHITE, read_image, resize_or_pad_image, upright_rgb
from plotting import BLUE, GREEN, GREY, ORANGE, VERMILION, legible, name_ticks, new_figure, save_figure, short_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from PIL import Image

DARK_BELOW = 128  # grey values below it are dark
DARK_SHARE = 0.5  # an image with a larger share of dark pixels has a black background
_EXAMPLES = 3  # images per class, each beside its padded copy
_LARGEST_SHOWN = 1000  # pixels of the longer side, approximately
_SOURCES = 2  # per class, whose augmented images are shown
_AUGMENTED_SHOWN = 5  # per source
_CLASSES_SHOWN = 6  # in a figure of images
_FORMATS_SHOWN = 12  # classes in the figure of image sizes
_CLASSES_NUMBERED = 20  # up to which each bar has its number
_ARRAY_CLASSES_SHOWN = 20
_WIDEST = 14  # inches
_IN_A_ROW = 5  # images of a class from the start, the middle and the end of an array set
_LONGEST_TITLE = 12  # characters of a file name above a small image
_GAP = "#a9c4de"  # between array images: distinct from black and white


class ClassSizes(NamedTuple):
    """Numbers of images of a class: as found, and for training, augmented, and for testing after preparation."""

    found: int
    kept: int
    augmented: int
    testing: int


@dataclass(frozen=True)
class ArraySet:
    """The grey images of a set, sorted by file name."""

    name: str
    labels: np.ndarray  # (N,) str
    pixels: np.ndarray  # (N, H, W) uint8

    @cached_property
    def dark_shares(self) -> np.ndarray:
        """The share of dark pixels of each image, (N,)."""
        return (self.pixels < DARK_BELOW).mean(axis=(1, 2))

    def of_class(self, name: str) -> np.ndarray:
        """Return the images of a class, (M, H, W) uint8; M may be 0."""
        return self.pixels[self.labels == name]


def plot_dataset(dataset_dir: Path, sizes: Mapping[str, ClassSizes], figures_dir: Path) -> list[Path]:
    """Draw all figures of a dataset, which has one folder per class, and return the PNG files."""
    files = {name: class_images(dataset_dir, name) for name in class_names(dataset_dir)}
    white = find_white_level([path for paths in files.values() for path in paths])
    images = {name: examine(paths, white_level=white)[0] for name, paths in files.items()}
    augmented = {name: paths for name in files if (paths := class_images(dataset_dir, name + AUGMENTED_SUFFIX))}
    figures = {
        "class_sizes": draw_class_sizes(sizes),
        "image_formats": draw_formats(images),
        "original_padded_images": draw_padded(images, white),
    }
    if augmented:
        figures["augmented_images"] = draw_augmented(dataset_dir, augmented, white)
    else:
        (figures_dir / "augmented_images.png").unlink(missing_ok=True)  # from an earlier run
    return _save_all(figures, figures_dir)


def plot_array_sets(sets: Sequence[ArraySet], figures_dir: Path) -> list[Path]:
    """Draw examples, intensities, means and variances of sets side by side, and return the PNG files."""
    figures = {
        "examples": draw_array_examples(sets), "intensities": draw_intensities(sets), "means": draw_means(sets),
    }  # fmt: skip
    return _save_all(figures, figures_dir)


def _save_all(figures: Mapping[str, Figure], figures_dir: Path) -> list[Path]:
    for name, figure in figures.items():
        save_figure(figure, figures_dir / f"{name}.png")
    return [figures_dir / f"{name}.png" for name in figures]


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


def draw_padded(images: Mapping[str, Sequence[Examined]], white: int = WHITE) -> Figure:
    """Draw images of the first classes, each beside its resized and padded copy."""
    names = list(images)[:_CLASSES_SHOWN]
    figure, grid = _picture_grid(names, 2 * _EXAMPLES)
    for row, name in zip(grid, names, strict=True):
        members = images[name]
        spread = np.linspace(0, len(members) - 1, min(_EXAMPLES, len(members))).round().astype(int)
        for column, index in enumerate(spread):
            image = upright_rgb(read_image(members[index].path, white))
            # Matplotlib needs many times the memory of an image, and a figure cannot show more pixels than this.
            shown = image.reduce(max(1, max(image.size) // _LARGEST_SHOWN))
            _show(row[2 * column], shown, f"{image.width}x{image.height}")
            padded = resize_or_pad_image(image)
            _show(row[2 * column + 1], padded, f"{padded.width}x{padded.height}")
    figure.suptitle("Images, and their resized and padded copies")
    return figure


def draw_augmented(dataset_dir: Path, augmented: Mapping[str, Sequence[Path]], white: int = WHITE) -> Figure:
    """Draw images of the first augmented classes, each beside images that were made from it."""
    rows = []
    for name in list(augmented)[:_CLASSES_SHOWN]:
        files = {stem_of(path): path for path in class_images(dataset_dir, name)}
        made = Counter(source for path in augmented[name] if (source := source_stem(path)) in files)
        for source, _ in sorted(made.items(), key=lambda item: (-item[1], item[0]))[:_SOURCES]:
            of_source = [path for path in augmented[name] if source_stem(path) == source]
            rows.append((name, files[source], of_source[:_AUGMENTED_SHOWN]))
    figure, grid = _picture_grid([name for name, *_ in rows], 1 + max(len(made) for *_, made in rows))
    for axes, (_, source, made) in zip(grid, rows, strict=True):
        stem = legible(printable(source.stem))
        short = stem if len(stem) <= _LONGEST_TITLE else f"{stem[:4]}\u2026{stem[5 - _LONGEST_TITLE :]}"
        _show(axes[0], resize_or_pad_image(read_image(source, white)), f"source {short}")
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


def draw_array_examples(sets: Sequence[ArraySet]) -> Figure:
    """Draw the first, middle and last images of each class, with one column of panels per set."""
    names, longest = _first_classes(sets)
    cell = 0.42
    width = len(sets) * (cell * _IN_A_ROW + 0.25) + 0.6 + 0.08 * longest
    figure = new_figure(width, 3 * (cell * len(names) + 0.2) + 0.8)
    grid = figure.subplots(3, len(sets), squeeze=False)
    for column, array_set in zip(grid.T, sets, strict=True):
        thirds = [np.array_split(array_set.of_class(name), 3) for name in names]
        for part, axes in enumerate(column):
            tiles = np.stack([_choose_part(third[part], part) for third in thirds])
            _show_tiles(axes, tiles, "gray", 255)
        column[0].set_title(f"{array_set.name}\n{len(array_set.pixels):,} images", fontsize=11)
    for axes, title in zip(grid[:, 0], ("first", "middle", "last"), strict=True):
        name_ticks(axes.yaxis, names, np.arange(len(names)) + 0.5)
        axes.set_ylabel(title, fontsize=11)
    figure.suptitle("Examples of each class")
    return figure


def draw_intensities(sets: Sequence[ArraySet]) -> Figure:
    """Draw two histograms per set, on shared axes: the values of all pixels, and the share of dark pixels per image."""
    figure = new_figure(max(5, 2.6 * len(sets) + 1.2), 5.2)
    grid = figure.subplots(2, len(sets), sharey="row", squeeze=False)
    style = {"edgecolor": "white", "linewidth": 0.5}
    for (above, below), array_set in zip(grid.T, sets, strict=True):
        levels = np.bincount(array_set.pixels.ravel(), minlength=256).reshape(16, 16).sum(axis=1)
        above.bar(np.arange(8, 256, 16), levels / levels.sum(), 16, color=BLUE, **style)
        shares = array_set.dark_shares
        above.set_title(f"{array_set.name}\n{shares.mean():.0%} of the pixels are dark", fontsize=11)
        above.set(xlim=(0, 256), xticks=[0, 128, 255])
        counts, edges = np.histogram(shares, 25, (0, 1))
        below.bar(edges[:-1], counts / counts.sum(), 0.04, align="edge", color=ORANGE, **style)
        below.axvline(DARK_SHARE, color=VERMILION, linestyle="--", linewidth=1.2)
        below.set_title(f"{np.mean(shares <= DARK_SHARE):.0%} of the images on white", fontsize=11)
        below.set(xlim=(0, 1), xticks=[0, 0.5, 1])
        below.xaxis.set_major_formatter("{x:.0%}")
    titles = ("grey value of a pixel (0 is black)", "dark pixels of an image (white, if at most half)")
    for row, unit, title in zip(grid, ("pixels", "images"), titles, strict=True):
        row[0].set_ylabel(f"share of {unit}")
        row[0].yaxis.set_major_formatter("{x:.0%}")
        row[len(sets) // 2].set_xlabel(title)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_means(sets: Sequence[ArraySet]) -> Figure:
    """Draw the mean and variance images of each class, for values from 0 to 1, with one row per set."""
    names, longest = _first_classes(sets)
    cell = 0.75 if len(names) <= 6 else 0.55
    upright = longest > 10 * cell  # horizontal names would overlap
    figure = new_figure(
        max(4.5, 2 * (cell * len(names) + 0.2)) + 0.9 + 0.08 * max(len(array_set.name) for array_set in sets),
        len(sets) * (cell + 0.3) + 1.5 + (0.08 * longest if upright else 0),
    )
    grid = figure.subplots(len(sets) + 1, 2, height_ratios=[1] * len(sets) + [0.1])
    for row, array_set in zip(grid[:-1], sets, strict=True):
        members = [array_set.of_class(name) for name in names]
        blank = np.full(array_set.pixels.shape[1:], np.nan)
        means = np.stack([images.mean(axis=0) / 255 if len(images) else blank for images in members])
        variances = np.stack([images.var(axis=0) / 255**2 if len(images) else blank for images in members])
        shown = _show_tiles(row[0], means[None], "gray", 1), _show_tiles(row[1], variances[None], "magma", 0.25)
        row[0].set_ylabel(array_set.name, fontsize=11, rotation=0, ha="right", va="center")
        for column, images in enumerate(members):
            row[0].text(column + 0.5, 1.04, f"{len(images):,}", ha="center", va="top", fontsize=8)
    titles = ("Mean (below: number of images)", "Variance")
    scales = ("0 is black, 1 is white", "0.25: half black, half white")
    for column, image, title, scale in zip(grid.T, shown, titles, scales, strict=True):
        column[0].xaxis.set_label_position("top")
        column[0].xaxis.tick_top()
        name_ticks(column[0].xaxis, names, np.arange(len(names)) + 0.5, rotation=90 if upright else 0)
        column[0].set_xlabel(title, fontsize=12)
        column[0].tick_params(length=0)
        figure.colorbar(image, cax=column[-1], orientation="horizontal").set_label(scale, fontsize=9)
    return figure


def _first_classes(sets: Sequence[ArraySet]) -> tuple[list[str], int]:
    """Return the names of the first classes of some sets, and the length of the longest label."""
    names = sorted(set().union(*(array_set.labels.tolist() for array_set in sets)))[:_ARRAY_CLASSES_SHOWN]
    return names, max(len(short_label(name)) for name in names)


def _choose_part(images: np.ndarray, part: int) -> np.ndarray:
    """Return the first, middle or last images (part 0, 1 or 2), (5, H, W); if there are fewer, the others are NaN."""
    spare = max(0, len(images) - _IN_A_ROW)
    chosen = images[part * spare // 2 :][:_IN_A_ROW]
    tiles = np.full((_IN_A_ROW, *images.shape[1:]), np.nan, np.float32)
    tiles[: len(chosen)] = chosen
    return tiles


def _show_tiles(axes: Axes, tiles: np.ndarray, colours: str, white: float) -> AxesImage:
    """Show images (rows, columns, H, W), separated by gaps, each on one unit square of the axes; NaN as gaps."""
    import matplotlib

    rows, columns, height, width = tiles.shape
    gap = max(1, height // 14)
    framed = np.pad(tiles.astype(np.float32), ((0, 0), (0, 0), (gap, gap), (gap, gap)), constant_values=np.nan)
    picture = framed.swapaxes(1, 2).reshape(rows * (height + 2 * gap), columns * (width + 2 * gap))
    axes.set(xticks=[], yticks=[])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    shades = matplotlib.colormaps[colours].resampled(64).with_extremes(bad=_GAP)  # more shades enlarge the file
    style = {"interpolation": "nearest", "extent": (0, columns, rows, 0), "aspect": height / width}
    return axes.imshow(picture, shades, vmin=0, vmax=white, **style)
