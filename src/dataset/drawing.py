"""Draw the images of the offline sample: an axe, a book or a hammer among other things on a textured surface.

Things are flat shapes, as in a vector drawing. Light on their edges and a soft shadow make them look solid.
Coordinates: x points right, y down; a thing is about 1 long, and its centre is near the origin.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

# All things share one palette, so that colour does not reveal the class.
WOODS = ((201, 152, 96), (166, 112, 64), (121, 78, 48), (224, 190, 142))
METALS = ((152, 160, 168), (112, 120, 130), (198, 203, 207), (58, 64, 74))
PAINTS = (
    (196, 62, 52), (226, 124, 60), (232, 182, 76), (120, 150, 80), (54, 118, 90), (44, 136, 142),
    (82, 140, 190), (48, 76, 134), (114, 84, 150), (176, 80, 116), (238, 226, 204), (230, 158, 148),
)  # fmt: skip
PALETTE = WOODS + METALS + PAINTS
MIRROR = np.diag([-1, 1])
PAPER, INK, STEEL, COFFEE = np.array([(240, 233, 216), (92, 88, 88), (222, 227, 231), (92, 58, 38)])


class Part(NamedTuple):
    """A part of a thing: its outline (N, 2), its colour (3,), and its height, 1 to 255, or 0 for print on a part."""

    outline: np.ndarray
    colour: np.ndarray
    height: int = 0


def _pick_colour(rng: np.random.Generator, unlike: np.ndarray, preferred: tuple = PALETTE) -> np.ndarray:
    """Pick a colour (3,) that differs from another one, and is more often than not one of the preferred."""
    while True:
        among = preferred if rng.random() < 0.6 else PALETTE
        colour = np.array(among[rng.integers(len(among))]) * rng.uniform(0.88, 1.08)
        if np.linalg.norm(colour - unlike) > 95:
            return colour


def _curve(start: tuple, control: tuple, end: tuple) -> np.ndarray:
    """Return points (16, 2) of a quadratic Bezier curve."""
    t = np.linspace(0, 1, 16)[:, None]
    return (1 - t) ** 2 * np.array(start) + 2 * t * (1 - t) * np.array(control) + t**2 * np.array(end)


def _stroke(path: np.ndarray, widths: np.ndarray | float) -> np.ndarray:
    """Return the outline of a line along a path (N, 2); its width may change from point to point."""
    along = np.gradient(path, axis=0)
    across = along[:, ::-1] * (-1, 1) / np.linalg.norm(along, axis=1, keepdims=True)
    half = across * np.broadcast_to(widths, len(path))[:, None] / 2
    return np.concatenate([path + half, (path - half)[::-1]])


def _block(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def _disc(x: float, y: float, radius: float, corners: int = 40) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([x + radius * np.sin(angles), y - radius * np.cos(angles)], axis=1)


def _rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _transform(parts: list[Part], matrix: np.ndarray, shift: np.ndarray | tuple = (0, 0)) -> list[Part]:
    return [part._replace(outline=part.outline @ matrix.T + shift) for part in parts]


def _draw_tool(rng: np.random.Generator, surface: np.ndarray, bend: float, head: list[Part]) -> list[Part]:
    """Put a head, which has the eye at the origin, on a handle; half of the handles have a grip."""
    path = _curve((0, -0.47), (bend, 0.1), (0, 0.5))
    widths = rng.uniform(0.055, 0.08) * np.interp(np.arange(16), [0, 11, 15], [1, 0.9, rng.uniform(1, 1.4)])
    parts = [Part(_stroke(path, widths), _pick_colour(rng, surface, WOODS), 130)]
    if rng.random() < 0.5:
        grip, colour = rng.integers(9, 12), _pick_colour(rng, surface)
        parts.append(Part(_stroke(path[grip:], 1.2 * widths[grip:]), colour, 150))
        rings = [_block(-0.6 * widths[i], 0, 0.6 * widths[i], 0.008) + path[i] for i in range(grip + 1, 15)]
        parts += [Part(ring, colour * 0.7) for ring in rings]
    return parts + _transform(head, np.eye(2) * rng.uniform(1.3, 1.7), (0, -0.34))


def draw_axe(rng: np.random.Generator, surface: np.ndarray) -> list[Part]:
    """Draw an axe or a double-bitted axe."""
    reach, toe, heel = rng.uniform([0.2, 0.11, 0.12], [0.27, 0.15, 0.2])
    upper = _curve((0, -0.06), (-reach * 0.6, -0.05), (-reach, -toe))
    edge = _curve((-reach, -toe), (-reach * 1.22, (heel - toe) / 2), (-reach * 0.95, heel))
    lower = _curve((-reach * 0.95, heel), (-reach * 0.5, 0.05), (0, 0.06))
    colour = _pick_colour(rng, surface, METALS)
    bit = [Part(np.concatenate([upper, edge, lower]), colour, 220)]
    bit.append(Part(np.concatenate([edge, edge[::-1] * (0.84, 1)]), STEEL, 190))
    eye = Part(_block(-0.035, -0.06, 0.035, 0.06), colour * 0.8)
    if rng.random() < 0.25:
        return _draw_tool(rng, surface, 0, [*bit, *_transform(bit, MIRROR), eye])
    back = Part(_block(0, -0.06, rng.uniform(0.07, 0.1), 0.06), colour, 220)
    return _draw_tool(rng, surface, rng.uniform(-0.15, 0.15), [*bit, back, eye])


def draw_hammer(rng: np.random.Generator, surface: np.ndarray) -> list[Part]:
    """Draw a claw hammer, a ball-peen hammer or a sledge hammer."""
    end, long, tall = rng.uniform([0.13, 0.14, 0.065], [0.17, 0.19, 0.09])
    face = [_block(0, -0.03, end, 0.03), _block(end - 0.055, -0.048, end, 0.048)]
    eye = _block(-0.045, -0.048, 0.045, 0.048)
    claw = _stroke(_curve((0, 0), (-0.11, -0.03), (-0.18, rng.uniform(0.05, 0.1))), np.linspace(0.085, 0.014, 16))
    ball = [_block(-0.1, -0.03, 0, 0.03), _disc(-0.12, 0, 0.055)]
    sledge = [_block(-long, 0.012 - tall, long, tall - 0.012), _block(0.035 - long, -tall, long - 0.035, tall)]
    outlines = ([claw, *face, eye], [*ball, *face, eye], sledge)[rng.integers(3)]
    colour = _pick_colour(rng, surface, METALS)
    head = [Part(outline, colour, 170 + 12 * i) for i, outline in enumerate(outlines)]
    return _draw_tool(rng, surface, rng.uniform(-0.05, 0.05), head)


def draw_closed_books(rng: np.random.Generator, surface: np.ndarray) -> list[Part]:
    """Draw one book or a stack, from the lowest board up. What is higher appears further up in the image."""
    parts, height = [], 0.0
    for _ in range(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15])):
        colour, turn, x = _pick_colour(rng, surface), _rotation(rng.uniform(-0.4, 0.4)), rng.uniform(0.3, 0.38)
        sides = ((-x, x), (-x, 0.03 - x), (0.05 - x, 0.07 - x))
        board, spine, hinge = (_block(left, -0.5, right, 0.5) for left, right in sides)
        for layer in range(rng.integers(9, 15)):
            edge = colour * 0.7 if layer < 2 else PAPER * (0.9 if layer % 2 else 0.76)
            parts += _transform([Part(board, edge, 120), Part(spine, colour * 0.8)], turn, (0, -height))
            height += 0.012
        accent, emblem = _pick_colour(rng, colour), _disc(0.03, 0.15, rng.uniform(0.08, 0.14), rng.choice([4, 6, 40]))
        front = [Part(board, colour, 200), Part(hinge, colour * 0.75), Part(emblem, accent)]
        for line, half in enumerate(rng.uniform(0.08, 0.2, rng.integers(1, 4))):
            front.append(Part(_block(-half, -0.3, half, -0.25) + (0.03, 0.08 * line), accent))
        parts += _transform(front, turn, (0, -height))
    return parts


def draw_open_book(rng: np.random.Generator, surface: np.ndarray) -> list[Part]:
    """Draw a cover, and two pages of text, perhaps with pictures."""
    tall, bulge = rng.uniform(0.3, 0.38), rng.uniform(0.03, 0.12)

    def band(left: float, right: float, top: float, bottom: float) -> np.ndarray:
        """Return an outline that follows the bulge of the right page."""
        upper = _curve((left, top), ((left + right) / 2, top - bulge * (right - left)), (right, top))
        return np.concatenate([upper, upper[::-1] + (0, bottom - top)])

    parts = [Part(_block(-0.53, -tall - 0.02, 0.53, tall + 0.03), _pick_colour(rng, surface), 80)]
    for side in (MIRROR, np.eye(2)):
        page = [Part(band(0, 0.5, -tall, tall), PAPER, 180), Part(band(0, 0.04, -tall, tall), PAPER * 0.87)]
        for y in np.arange(0.07 - tall, tall - 0.05, 0.065):
            page.append(Part(band(0.08, rng.choice([0.44, 0.44, 0.35]), y, y + 0.02), INK))
        if rng.random() < 0.5:
            top = rng.uniform(0.05 - tall, tall - 0.25)
            page.append(Part(band(0.07, 0.45, top, top + 0.22), _pick_colour(rng, PAPER)))
        parts += _transform(page, side)
    return parts


def draw_cup(rng: np.random.Generator, surface: np.ndarray) -> list[Part]:
    colour = _pick_colour(rng, surface)
    handle = _stroke(_curve((0.2, -0.1), (0.68, 0), (0.2, 0.12)), 0.08)
    discs = [_disc(-0.08, 0, radius) for radius in (0.36, 0.29, 0.26)]
    return [Part(handle, colour, 120), *map(Part, discs, (colour, colour * 0.75, COFFEE), (200, 120, 120))]


def draw_pencil(rng: np.random.Generator, surface: np.ndarray) -> list[Part]:
    colour, point = _pick_colour(rng, surface), np.array([(0.14, -0.04), (0, 0), (0.14, 0.04)])
    return [
        Part(_block(-0.36, -0.04, 0.4, 0.04), colour, 150),
        Part(_block(-0.36, -0.012, 0.4, 0.012), colour * 1.15),
        Part(_block(0.4, -0.04, 0.5, 0.04), _pick_colour(rng, surface), 150),
        Part(point - (0.5, 0), np.array(WOODS[3]), 120),
        Part(point * 0.35 - (0.5, 0), INK),
    ]


def draw_leaf(rng: np.random.Generator, surface: np.ndarray) -> list[Part]:
    colour, half = _pick_colour(rng, surface), _curve((-0.36, 0), (0, rng.uniform(0.3, 0.5)), (0.5, 0))
    veins = [_curve((x + 0.12, side * 0.12), (x, 0), (x, 0)) for x in (-0.22, -0.06, 0.1, 0.24) for side in (-1, 1)]
    veins.append(_curve((-0.5, 0.06), (-0.3, -0.02), (0.42, 0)))
    outline = np.concatenate([half, half[::-1] * (1, -1)])
    return [Part(outline, colour, 100), *(Part(_stroke(vein, 0.018), colour * 0.78) for vein in veins)]


PAINTERS = {"Axe": [draw_axe], "Book": [draw_open_book, *2 * [draw_closed_books]], "Hammer": [draw_hammer]}
CLUTTER = ((draw_cup, 0.2), (draw_pencil, 0.25), (draw_leaf, 0.15))  # with lengths relative to the shorter side


def _draw_surface(rng: np.random.Generator, size: tuple[int, int], colour: np.ndarray) -> Image.Image:
    """Draw planks, tiles, a checked cloth or plaster, at an angle."""
    grain = Image.fromarray(rng.uniform(0.965, 1.035, (60, 60)).astype(np.float32))
    tone = np.array(grain.resize(size, Image.Resampling.BICUBIC))
    down, across = np.indices(size[::-1], dtype=np.float32) / max(size)
    u, v = np.tensordot(_rotation(rng.uniform(0, np.pi)), [across, down], 1) * rng.uniform(4, 8)
    kind = rng.choice(["planks", "tiles", "cloth", "plaster"])
    if kind == "planks":
        tone += rng.uniform(-0.07, 0.07, 32)[np.floor(u).astype(int)] - 0.15 * (u % 1 < 0.04)
    elif kind == "tiles":
        tone -= 0.12 * ((u % 1 < 0.03) | (v % 1 < 0.03))
    elif kind == "cloth":
        tone += 0.07 * (u % 1 < 0.5) - 0.07 * (v % 1 < 0.5)
    return Image.fromarray((colour * tone[..., None]).clip(0, 255).astype(np.uint8))


class Canvas:
    """A surface with things on it, twice as large until it is rendered, so that edges become smooth."""

    def __init__(self, surface: Image.Image):
        self._colours = surface.resize((2 * surface.width, 2 * surface.height), Image.Resampling.NEAREST)
        self._heights = Image.new("L", self._colours.size)

    def add(self, parts: list[Part], matrix: np.ndarray, length: float, position: np.ndarray) -> None:
        """Transform a thing and add it, unless another thing is in its way.

        Its longer side gets a length in pixels. The position (2,) is 0 at the left or upper margin, 1 at the other.
        """
        points = np.concatenate([part.outline for part in parts]) @ matrix.T
        low, high = points.min(axis=0), points.max(axis=0)
        scale = 2 * length / (high - low).max()
        corner = position * (self._heights.size - scale * (high - low))
        box = np.concatenate([corner, corner + scale * (high - low)])
        if self._heights.crop(tuple(box.astype(int).tolist())).getbbox():
            return
        for part in _transform(parts, scale * matrix, corner - scale * low):
            polygon, colour = part.outline.ravel().tolist(), part.colour.clip(0, 255).astype(int).tolist()
            ImageDraw.Draw(self._colours).polygon(polygon, fill=tuple(colour))
            if part.height:
                ImageDraw.Draw(self._heights).polygon(polygon, fill=part.height)

    def cover(self) -> Image.Image:
        """Return where the things are, mode "L"."""
        return self._heights.point(lambda height: 255 * (height > 0)).reduce(2)

    def render(self, rng: np.random.Generator) -> Image.Image:
        """Light the edges of the things from one side, and add their shadows on the surface."""
        angle, side = rng.uniform(0, 2 * np.pi), max(self._heights.size)
        lamp = np.array([np.cos(angle), np.sin(angle)], dtype=np.float32)  # its direction
        shift = tuple((-0.01 * side * lamp).round().astype(int).tolist())
        shadow = self.cover().rotate(0, translate=shift).filter(ImageFilter.GaussianBlur(0.007 * side))
        relief = self._heights.reduce(2).filter(ImageFilter.GaussianBlur(0.003 * side))
        cover, shadow, relief = (np.asarray(image, np.float32) / 255 for image in (self.cover(), shadow, relief))
        rise = np.tensordot(lamp, np.gradient(relief)[::-1], 1) * side  # towards the lamp: it is darker there
        nearness = np.tensordot(lamp, np.indices(cover.shape, np.float32)[::-1] / side - 0.25, 1)
        tone = 1 - 0.55 * shadow * (1 - cover) - 0.003 * rise * cover
        tone *= rng.uniform(0.85, 1.1) * (1 + rng.uniform(0.2, 0.8) * nearness)
        tint = 1 + rng.normal(0, 0.05) * np.array([1, 0.1, -1], np.float32)
        lit = np.asarray(self._colours.reduce(2)) * tone[..., None] * tint
        return Image.fromarray(lit.clip(0, 255).astype(np.uint8))


def draw(label: str, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Draw an image (RGB, 200 to 640 pixels per side) of an object, and its mask (mode "L", 255 on the object).

    The label is a key of `PAINTERS`. The generator determines everything that varies.
    """
    longer = int(250 + 390 * rng.random() ** 3)
    shorter = max(200, int(longer * rng.uniform(0.7, 1.0)))
    surface = 0.25 * rng.uniform(0, 255, 3) + 0.75 * rng.uniform(90, 195)  # a muted colour
    canvas = Canvas(_draw_surface(rng, tuple(rng.permutation([longer, shorter]).tolist()), surface))
    # Tools are long and thin: drawn larger, so that the share of the background does not reveal the class.
    turn, length = (0.25, 0.72 * shorter) if label == "Book" else (0.4, shorter)
    matrix = _rotation(rng.normal(0, turn)) @ rng.normal(np.eye(2), 0.07)  # seen at an angle
    paint = PAINTERS[label][rng.integers(len(PAINTERS[label]))]
    canvas.add(paint(rng, surface), matrix, length * rng.uniform(0.8, 0.96), rng.uniform(0.01, 0.99, 2))
    mask = canvas.cover().point(lambda cover: 255 * (cover > 127))
    for _ in range(rng.integers(4, 12)):
        paint, size = CLUTTER[rng.integers(len(CLUTTER))]
        turned, length = _rotation(rng.uniform(0, 2 * np.pi)), size * shorter * rng.uniform(0.8, 1.2)
        canvas.add(paint(rng, surface), turned, length, rng.uniform(-0.1, 1.1, 2))
    return canvas.render(rng), mask
