"""Draw the figures that compare array sets: examples, intensities, means and variances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from plotting import BLUE, ORANGE, VERMILION, name_ticks, new_figure, save_figures, short_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

DARK_BELOW = 128  # grey values below it are dark
DARK_SHARE = 0.5  # an image with a larger share of dark pixels has a black background
_CLASSES_SHOWN = 20
_IN_A_ROW = 5  # images of a class from the start, the middle and the end of a set
_GAP = "#a9c4de"  # between images: distinct from black and white


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

    def images_of(self, name: str) -> np.ndarray:
        """Return the images of a class, (M, H, W) uint8; M may be 0."""
        return self.pixels[self.labels == name]


def plot_array_sets(sets: Sequence[ArraySet], figures_dir: Path) -> list[Path]:
    """Draw examples, intensities, means and variances of sets side by side, and return the PNG files."""
    figures = {
        "examples": draw_array_examples(sets), "intensities": draw_intensities(sets), "means": draw_means(sets),
    }  # fmt: skip
    return save_figures(figures, figures_dir)


def draw_array_examples(sets: Sequence[ArraySet]) -> Figure:
    """Draw the first, middle and last images of each class, with one column of panels per set."""
    names, longest = _first_classes(sets)
    cell = 0.42
    width = len(sets) * (cell * _IN_A_ROW + 0.25) + 0.6 + 0.08 * longest
    figure = new_figure(width, 3 * (cell * len(names) + 0.2) + 0.8)
    grid = figure.subplots(3, len(sets), squeeze=False)
    for column, array_set in zip(grid.T, sets, strict=True):
        thirds = [np.array_split(array_set.images_of(name), 3) for name in names]
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
        members = [array_set.images_of(name) for name in names]
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
    names = sorted(set().union(*(array_set.labels.tolist() for array_set in sets)))[:_CLASSES_SHOWN]
    return names, max(len(short_label(name)) for name in names)


def _choose_part(images: np.ndarray, part: int) -> np.ndarray:
    """Return the first, middle or last images (part 0, 1 or 2), (5, H, W); if there are fewer, the others are NaN."""
    spare = max(0, len(images) - _IN_A_ROW)
    chosen = images[part * spare // 2 :][:_IN_A_ROW]
    tiles = np.full((_IN_A_ROW, *images.shape[1:]), np.nan, np.float32)
    tiles[: len(chosen)] = chosen
    return tiles


def _show_tiles(axes: Axes, tiles: np.ndarray, colours: str, highest: float) -> AxesImage:
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
    return axes.imshow(picture, shades, vmin=0, vmax=highest, **style)
