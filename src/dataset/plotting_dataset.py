"""The figures of a dataset: class sizes, forms of images, padding, augmentation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dataset.augmentation_data import resize_or_pad_image
from dataset.examining import examine
from dataset.folders import AUGMENTED, class_names, image_files, source_stem
from dataset.reading import read_image, upright_rgb
from plotting import BLUE, GREEN, GREY, ORANGE, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

_EXAMPLES = 3  # pairs a class
_SOURCES = 2  # a class whose augmented images are shown
_AUGMENTED_SHOWN = 5  # of a source
_CLASSES_SHOWN = 6  # in a figure of pictures


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
    images = {name: examine(image_files(dataset_dir / name))[0] for name in names}
    forms = {name: [image.size for image in members] for name, members in images.items()}
    figures = {
        "class_sizes": draw_class_sizes(sizes),
        "image_formats": draw_formats(forms, {name: Counter(i.form for i in images[name]) for name in names}),
        "original_padded_images": draw_padded({name: [i.path for i in images[name]] for name in names}),
    }
    augmented = {name: image_files(dataset_dir / (name + AUGMENTED)) for name in names}
    if any(augmented.values()):
        figures["augmented_images"] = draw_augmented(dataset_dir, {n: a for n, a in augmented.items() if a})
    paths = {name: figures_dir / f"{name}.png" for name in figures}
    for name, figure in figures.items():
        save_figure(figure, paths[name])
    if "augmented_images" not in figures:
        (figures_dir / "augmented_images.png").unlink(missing_ok=True)  # it would show another dataset's
    return list(paths.values())


def draw_class_sizes(sizes: Mapping[str, ClassSizes]) -> Figure:
    """Bars of each class: as it was found, and what became of it."""
    figure = new_figure(max(6.5, 1.6 * len(sizes) + 2), 4.5)
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
        for field, label, colour in parts:
            heights = np.array([getattr(size, field) for size in sizes.values()])
            axes.bar(places + offset, heights, width, bottom, color=colour, label=label, edgecolor="white")
            bottom += heights
        for place, total, size in zip(places, bottom, sizes.values(), strict=True):
            text = f"{size.kept}+{size.augmented}" if len(parts) > 1 and size.augmented else f"{total}"
            axes.text(place + offset, total, text, ha="center", va="bottom", fontsize=9 if len(sizes) <= 8 else 7)
    axes.set_xticks(places, sizes)
    axes.set(ylabel="images", title="Class sizes before and after")
    axes.set_ylim(0, 1.08 * max(max(size.found, size.kept + size.augmented) for size in sizes.values()))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def draw_formats(sizes: Mapping[str, Sequence[tuple[int, int]]], forms: Mapping[str, Counter[str]]) -> Figure:
    """Dots at the widths and heights of the images; above them, how many different ones, and of which file formats."""
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
        axes.set_title(f"{name}: {len(members)} images, {len(counted)} sizes\n{files}", fontsize=10)
        axes.set(xscale="log", yscale="log", xlim=limits, ylim=limits, box_aspect=1)
        axes.grid(alpha=0.3)
        _use_plain_numbers(axes)
    for axes in grid.flat[len(sizes) :]:
        axes.set_visible(False)
    figure.supxlabel("width in pixels")
    figure.supylabel("height in pixels")
    figure.suptitle("Sizes of the images: a dot a size, larger where several images have it; on the line: squares")
    return figure


def draw_padded(paths: Mapping[str, Sequence[Path]]) -> Figure:
    """Images of every class as they are, each beside what the models get."""
    names = list(paths)[:_CLASSES_SHOWN]
    figure, grid = _picture_grid(names, 2 * _EXAMPLES)
    for row, name in zip(grid, names, strict=True):
        for place, path in enumerate(_spread(paths[name], _EXAMPLES)):
            image = upright_rgb(read_image(path))
            _show(row[2 * place], image, f"{image.width}x{image.height}")
            padded = resize_or_pad_image(image)
            _show(row[2 * place + 1], padded, f"{padded.width}x{padded.height}")
    figure.suptitle("Images as they are, and resized and padded")
    return figure


def draw_augmented(dataset_dir: Path, augmented: Mapping[str, Sequence[Path]]) -> Figure:
    """Images of every augmented class, each beside images that were made from it."""
    rows = []
    for name in list(augmented)[:_CLASSES_SHOWN]:
        files = {path.stem: path for path in image_files(dataset_dir / name)}
        made = Counter(source for path in augmented[name] if (source := source_stem(path)) in files)
        for source, _ in sorted(made.most_common(), key=lambda item: (-item[1], item[0]))[:_SOURCES]:
            of_source = [path for path in augmented[name] if source_stem(path) == source]
            rows.append((name, files[source], of_source[:_AUGMENTED_SHOWN]))
    figure, grid = _picture_grid([name for name, *_ in rows], 1 + _AUGMENTED_SHOWN)
    for axes, (_, source, made) in zip(grid, rows, strict=True):
        _show(axes[0], resize_or_pad_image(read_image(source)), f"source {source.stem}")
        for place, path in enumerate(made):
            _show(axes[1 + place], read_image(path), f"augmented {path.stem.rpartition('_')[2]}")
    figure.suptitle("Images, and what augmentation made of them")
    return figure


def _picture_grid(names: Sequence[str], columns: int) -> tuple[Figure, np.ndarray]:
    figure = new_figure(1.45 * columns + 0.4, 1.75 * len(names) + 0.5)
    grid = figure.subplots(len(names), columns, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for row, name in zip(grid, names, strict=True):
        row[0].set_ylabel(name, fontsize=12)
    return figure, grid


def _show(axes: Axes, image: Image.Image, title: str) -> None:
    axes.imshow(image)
    axes.set_title(title, fontsize=9)


def _spread(paths: Sequence[Path], count: int) -> list[Path]:
    """So many files, evenly from among all."""
    places = np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)
    return [paths[place] for place in places]


def _use_plain_numbers(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(10, (1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
