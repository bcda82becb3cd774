"""Draw the images of the offline sample: an axe, a book or a hammer among other things on a textured surface.

Coordinates: x points right, y down and z towards the viewer. A layer has side 1 and its origin at the centre.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

# All things share one palette, so that colour does not reveal the class.
WOODS = ((196, 150, 98), (164, 112, 66), (122, 78, 46), (222, 188, 140), (92, 62, 44))
METALS = ((150, 156, 162), (112, 118, 126), (188, 192, 194), (66, 70, 76), (38, 40, 46))
PAINTS = (
    (178, 44, 40), (214, 96, 44), (226, 172, 60), (126, 142, 66), (46, 104, 74), (36, 124, 128), (74, 132, 178),
    (38, 66, 120), (98, 72, 130), (150, 62, 92), (236, 226, 206), (208, 200, 184), (190, 178, 160), (228, 150, 140),
)  # fmt: skip
PALETTE = WOODS + METALS + PAINTS
PAGE = np.array([238, 230, 210], dtype=np.float32)
INK = np.array([52, 48, 48], dtype=np.float32)

# How materials reflect light: contrast of the grain, gloss, and number of grains across and down a shape.
Finish = tuple[float, float, tuple[int, int]]
WOOD, STEEL, PAINT = (0.18, 0.12, (14, 3)), (0.06, 0.75, (3, 24)), (0.04, 0.40, (3, 3))
RUBBER, CLOTH, PAPER = (0.06, 0.15, (24, 24)), (0.06, 0.06, (80, 80)), (0.03, 0.00, (4, 4))

TONES = np.linspace(0, 2, 256)[:, None]  # brightness relative to the material's own colour
CORNERS = np.array([(-0.5, -0.5, 0), (0.5, -0.5, 0), (0.5, 0.5, 0), (-0.5, 0.5, 0)])
_ANGLES = np.linspace(0, 2 * np.pi, 48, endpoint=False)
CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)


class Scene(NamedTuple):
    """What all parts of an image share: the generator, the unit vector to the lamp, and the surface's colour."""

    rng: np.random.Generator
    light: np.ndarray
    backdrop: np.ndarray

    def pick(self, among: tuple = PALETTE) -> np.ndarray:
        """Pick a colour that differs from the surface: usually from `among`, sometimes from the whole palette."""
        while True:
            colour = _pick_colour(self.rng, among if self.rng.random() < 0.6 else PALETTE)
            if np.linalg.norm(colour - self.backdrop) > 95:
                return colour


def _pick_colour(rng: np.random.Generator, among: tuple = PALETTE) -> np.ndarray:
    colour = np.array(among[rng.integers(len(among))]) * rng.uniform(0.85, 1.12) + rng.normal(0, 5, 3)
    return colour.clip(8, 247).astype(np.float32)


def _make_noise(rng: np.random.Generator, size: tuple[int, int], cells: tuple[int, int]) -> np.ndarray:
    """Make smooth noise around 0, (height, width) float32, with this number of cells across and down."""
    coarse = rng.uniform(-1, 1, (cells[1] + 1, cells[0] + 1)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))


def _bend(start: tuple, control: tuple, end: tuple) -> np.ndarray:
    """A quadratic Bezier curve, (14, 2)."""
    t = np.linspace(0, 1, 14)[:, None]
    return (1 - t) ** 2 * np.array(start) + 2 * t * (1 - t) * np.array(control) + t**2 * np.array(end)


def _thicken(path: np.ndarray, widths: np.ndarray | float) -> np.ndarray:
    """The outline of a line of the given widths along a path."""
    along = np.gradient(path, axis=0)
    across = along[:, ::-1] * (-1, 1) / np.linalg.norm(along, axis=1, keepdims=True)
    half = across * np.broadcast_to(widths, len(path))[:, None] / 2
    return np.concatenate([path + half, (path - half)[::-1]])


def _ellipse(x: float, y: float, *radii: float) -> np.ndarray:
    return np.array((x, y)) + CIRCLE * radii


def _block(left: float, top: float, right: float, bottom: float, chamfer: float = 0.0) -> np.ndarray:
    """A rectangle with chamfered corners, (8, 2)."""
    xs, ys = (left, left + chamfer, right - chamfer, right), (top, top + chamfer, bottom - chamfer, bottom)
    return np.array([(xs[i], ys[j]) for i, j in ((1, 0), (2, 0), (3, 1), (3, 2), (2, 3), (1, 3), (0, 2), (0, 1))])


def _rotate(axis: int, angle: float) -> np.ndarray:
    """The (3, 3) matrix of a rotation by `angle` radians about the x, y or z axis (0, 1 or 2)."""
    i, j = ((1, 2), (2, 0), (0, 1))[axis]
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = np.cos(angle)
    matrix[i, j], matrix[j, i] = -np.sin(angle), np.sin(angle)
    return matrix


def _project(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Rotate points (N, 3) and project them to (N, 2) from a distance of 3."""
    turned = points @ matrix.T
    return turned[:, :2] * 3 / (3 - turned[:, 2:])


def _warp(image: Image.Image, quad: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Move the corners of an image, clockwise from the upper left, to `quad`, in pixels of a new image."""
    right, bottom = image.width - 1, image.height - 1
    corners = (1, 1), (right, 1), (right, bottom), (1, bottom)
    rows = []
    for (x, y), (u, v) in zip(quad, corners, strict=True):
        rows += [(x, y, 1, 0, 0, 0, -u * x, -u * y), (0, 0, 0, x, y, 1, -v * x, -v * y)]
    coefficients = np.linalg.solve(rows, np.ravel(corners)).tolist()
    return image.transform(size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)


class Layer:
    """A transparent square of `side` pixels to draw on."""

    def __init__(self, side: int, scene: Scene):
        self.image = Image.new("RGBA", (side, side))
        self.side, self.scene, self.rng = side, scene, scene.rng

    def _cut(self, outline: np.ndarray, pad: int = 0) -> tuple[Image.Image, tuple[int, int], np.ndarray]:
        """Return the mask of an outline, the position of the mask's upper left pixel, and the outline in its pixels."""
        pixels = (outline + 0.5) * self.side
        corner = np.floor(pixels.min(axis=0)).astype(int) - pad
        pixels = pixels - corner
        mask = Image.new("L", tuple((2 * (np.ceil(pixels.max(axis=0)).astype(int) + pad + 1)).tolist()))
        ImageDraw.Draw(mask).polygon((2 * pixels).ravel().tolist(), fill=255)
        return mask.reduce(2), tuple(corner.tolist()), pixels

    def add(self, outline: np.ndarray, colour: np.ndarray, finish: Finish, relief: float = 0.008) -> None:
        """Fill an outline. Its edges are rounded over a width of `relief` and shaded by the light."""
        grain, gloss, cells = finish
        mask, corner, _ = self._cut(outline, pad=int(2 * relief * self.side) + 1)
        soft = mask.reduce(2).filter(ImageFilter.GaussianBlur(relief * self.side / 2))  # half the resolution is enough
        height = np.asarray(soft, dtype=np.float32) * (0.0018 * relief * self.side)
        right, down = self.scene.light.tolist()
        tone = 0.96 + grain * _make_noise(self.rng, soft.size, cells)
        tone[:, 1:-1] += right * (height[:, :-2] - height[:, 2:])
        tone[1:-1] += down * (height[:-2] - height[2:])
        # A palette image of tones, from shadow to highlight, is faster than shading each channel.
        palette = colour * TONES + 340 * gloss * (TONES - 1.15).clip(0) ** 2
        painted = Image.fromarray((tone * 127.5).clip(0, 255).astype(np.uint8)).resize(mask.size)
        painted.putpalette(palette.clip(0, 255).astype(np.uint8).tobytes())
        self.image.paste(painted.convert("RGB"), corner, mask)

    def line(self, points: np.ndarray | list, colour: np.ndarray, width: float) -> None:
        pixels = ((np.asarray(points) + 0.5) * self.side).ravel().tolist()
        ink = tuple(int(value) for value in colour)
        ImageDraw.Draw(self.image).line(pixels, fill=ink, width=max(1, round(width * self.side)), joint="curve")

    def add_face(self, face: Image.Image, quad: np.ndarray, brightness: float) -> None:
        """Map a square image to a quadrilateral."""
        mask, corner, pixels = self._cut(quad)
        lit = face.convert("RGB").point(lambda value: value * brightness)
        self.image.paste(_warp(lit, pixels, mask.size), corner, mask)


def _draw_handle(layer: Layer, width: float, sway: float, foot: float) -> None:
    """Draw a handle that curves by `sway` and widens by `foot` at its end; half of the handles have a grip."""
    rng, y = layer.rng, np.linspace(-0.47, 0.49, 40)
    path = np.stack([sway * np.sin((y + 0.3).clip(0) * 5.5), y], axis=1)
    widths = width * (1 - 0.12 * np.sin((y + 0.5) * np.pi) + foot * (y - 0.38).clip(0) * 8)
    layer.add(_thicken(path, widths), layer.scene.pick(WOODS), WOOD if rng.random() < 0.75 else PAINT, width / 3)
    if rng.random() < 0.5:
        start, colour = rng.integers(24, 30), layer.scene.pick()
        layer.add(_thicken(path[start:], widths[start:] * 1.18), colour, RUBBER, width / 3)
        for i in range(start + 1, 38, 2):
            layer.line(_thicken(path[i : i + 2], widths[i])[1:3], colour * 0.62, 0.006)


def _draw_axe(layer: Layer) -> None:
    """Draw a felling axe, a hatchet (a larger head for its handle) or a double-bitted axe."""
    rng = layer.rng
    double, size = rng.random() < 0.25, rng.uniform(1.35, 1.8)
    width = rng.uniform(0.042, 0.06) * size**0.5
    _draw_handle(layer, width, 0 if double else rng.uniform(-0.03, 0.03), rng.uniform(0.1, 0.7))
    y, eye, tall = -0.33, width * 0.62, 0.065 * size
    reach, toe, heel = rng.uniform([0.2, 0.11, 0.12], [0.27, 0.15, 0.2]) * size
    colour, finish = layer.scene.pick(METALS), STEEL if rng.random() < 0.7 else PAINT
    edge_colour = np.array([216, 221, 225]) * rng.uniform(0.95, 1.1)
    upper = _bend((-eye, y - tall), (reach * 0.6, y - tall * 0.9), (reach, y - toe))
    edge = _bend((reach, y - toe), (reach * 1.22, y + (heel - toe) / 2), (reach * 0.95, y + heel))
    lower = _bend((reach * 0.95, y + heel), (reach * 0.5, y + tall * 0.9), (-eye, y + tall))
    for way in (-1, 1) if double else (-1,):
        layer.add(np.concatenate([upper, edge, lower]) * (way, 1), colour, finish, 0.012)
        layer.add(np.concatenate([edge, edge[::-1] * (0.8, 1)]) * (way, 1), edge_colour, STEEL, 0.008)
    if not double:
        layer.add(_block(-eye, y - tall, rng.uniform(0.07, 0.1) * size, y + tall, 0.012), colour, finish, 0.012)
    layer.line([(-eye, y - tall), (-eye, y + tall)], colour * 0.7, 0.005)


def _draw_hammer(layer: Layer) -> None:
    """Draw a claw hammer, a sledgehammer or a ball-peen hammer."""
    rng = layer.rng
    size, width = rng.uniform(1.6, 2.1), rng.uniform(0.055, 0.08)
    _draw_handle(layer, width, rng.uniform(-0.012, 0.012), rng.uniform(0, 0.4))
    y, half = -0.36, width * 0.75
    colour, finish = layer.scene.pick(METALS), STEEL if rng.random() < 0.75 else PAINT
    kind = rng.choice(["claw", "sledge", "ball-peen"], p=[0.45, 0.3, 0.25])
    if kind == "sledge":
        reach, tall = rng.uniform([0.14, 0.065], [0.19, 0.09]) * size
        layer.add(_block(-reach, y - tall, reach, y + tall, 0.022), colour, finish, 0.016)
        for x in (0.03 - reach, reach - 0.03):
            layer.line([(x, y - tall), (x, y + tall)], colour * 0.72, 0.006)
        return
    neck, tall, reach = 0.055 * size, 0.045 * size, rng.uniform(0.13, 0.17) * size
    layer.add(_block(0, y - neck / 2, reach, y + neck / 2), colour, finish, 0.014)
    layer.add(_block(reach - 0.055 * size, y - tall, reach, y + tall, 0.01), colour * 1.06, finish, 0.016)
    if kind == "claw":
        claw = _bend((0, y), (-0.11 * size, y - 0.03 * size), (-0.17 * size, y + rng.uniform(0.05, 0.1) * size))
        layer.add(_thicken(claw, np.linspace(0.085, 0.014, len(claw)) * size), colour, finish, 0.014)
    else:
        layer.add(_block(-0.1 * size, y - neck / 2, 0, y + neck / 2), colour, finish, 0.014)
        layer.add(_ellipse(-0.12 * size, y, 0.055 * size, 0.052 * size), colour * 1.04, finish, 0.024)
    layer.add(_block(-half, y - 0.055 * size, half, y + 0.055 * size, 0.012), colour, finish, 0.012)


def _draw_cover(layer: Layer, colour: np.ndarray, accent: np.ndarray, aspect: float) -> None:
    """Fill the layer with a front cover: cloth or paper, a hinge, a title, perhaps a band, a frame and an emblem."""
    rng = layer.rng
    layer.add(_block(-0.5, -0.5, 0.5, 0.5), colour, CLOTH if rng.random() < 0.6 else PAINT, 0.006)
    if rng.random() < 0.35:
        top = rng.uniform(-0.4, 0.25)
        layer.add(_block(-0.5, top, 0.5, top + rng.uniform(0.15, 0.35)), accent * 0.8, PAINT, 0.002)
    if rng.random() < 0.45:
        layer.line(_block(-0.38, -0.44, 0.44, 0.44)[[0, 1, 3, 4, 6, 0]], accent, 0.01)
    title = rng.uniform(-0.36, -0.2)
    for i, half in enumerate(rng.uniform(0.12, 0.3, rng.integers(1, 4))):
        layer.line([(0.03 - half, title + 0.085 * i), (0.03 + half, title + 0.085 * i)], accent, 0.04)
    if rng.random() < 0.7:
        radius, sides = rng.uniform(0.1, 0.2), rng.choice([4, 6, 48])
        emblem = _ellipse(0.03, 0.16, radius, radius * aspect)[:: 48 // sides]
        layer.add(emblem, accent, PAINT, 0.006)
        if rng.random() < 0.6:
            layer.add((emblem - (0.03, 0.16)) * 0.6 + (0.03, 0.16), colour * 0.85, PAINT, 0.004)
    layer.line([(0.03 - 0.12, 0.4), (0.03 + 0.12, 0.4)], accent, 0.02)
    layer.line([(-0.43, -0.5), (-0.43, 0.5)], colour * 0.72, 0.014)


def _draw_pages(layer: Layer, colour: np.ndarray) -> None:
    """Fill the layer with a side of a closed book: pages between two boards."""
    layer.add(_block(-0.5, -0.5, 0.5, 0.5), PAGE, PAPER, 0.002)
    pages = [(y, PAGE * layer.rng.uniform(0.72, 0.92), 0.012) for y in layer.rng.uniform(-0.4, 0.4, 14)]
    for y, shade, width in (*pages, (-0.36, PAGE * 0.6, 0.05), (-0.45, colour, 0.12), (0.45, colour, 0.12)):
        layer.line([(-0.5, y), (0.5, y)], shade, width)


def _draw_spine(layer: Layer, colour: np.ndarray, accent: np.ndarray) -> None:
    """Fill the layer with the spine of a book: bands and a title."""
    layer.add(_block(-0.5, -0.5, 0.5, 0.5), colour, CLOTH, 0.12)
    for x in (-0.42, -0.36, 0.36, 0.42):
        layer.line([(x, -0.5), (x, 0.5)], accent, 0.016)
    layer.line([(-0.22, 0), (layer.rng.uniform(0.05, 0.22), 0)], accent, 0.3)


def _draw_box(layer: Layer, extent: np.ndarray, lift: float, matrix: np.ndarray) -> None:
    """Draw a closed book of a width, height and thickness, `lift` above the ground, rotated by `matrix`."""
    colour, accent = layer.scene.pick(), _pick_colour(layer.rng)
    while np.linalg.norm(colour - accent) < 110:
        accent = _pick_colour(layer.rng)
    lamp = np.array([*layer.scene.light, 1.1]) / 1.5
    front, down = np.add(CORNERS, (0, 0, 0.5)), (0, 0, 1)
    spine, pages = partial(_draw_spine, colour=colour, accent=accent), partial(_draw_pages, colour=colour)
    cover = partial(_draw_cover, colour=colour, accent=accent, aspect=extent[0] / extent[1])
    sides = ((0, 3, (-1, 0, 0), spine), (1, 0, (0, -1, 0), pages), (2, 1, (1, 0, 0), pages), (3, 2, (0, 1, 0), pages))
    faces = [([front[a], front[b], front[b] - down, front[a] - down], normal, paint) for a, b, normal, paint in sides]
    for corners, normal, paint in (*faces, (front, down, cover)):
        seen = _project(np.array(corners) * extent + (0, 0, lift), matrix)
        (x, y), (u, v) = seen[1] - seen[0], seen[3] - seen[0]
        if x * v <= y * u:  # it faces away
            continue
        face = Layer(layer.side * 2 // 3 if normal == down else 160, layer.scene)
        paint(face)
        # Sides are low: reducing their height first avoids aliasing.
        picture = face.image if normal == down else face.image.reduce((1, 5))
        layer.add_face(picture, seen, 0.55 + 0.5 * max(0.0, float(matrix @ normal @ lamp)))


def _draw_closed_books(layer: Layer) -> None:
    """Draw one book, lying or standing, or a stack of two or three."""
    rng = layer.rng
    stack = rng.choice([1, 2, 3], p=[0.7, 0.2, 0.1])
    turn, lift = rng.uniform(0, 2 * np.pi), -0.08 * stack
    tilt = _rotate(0, rng.uniform(0.15, 0.75) if stack == 1 else rng.uniform(0.65, 0.95))
    if stack == 1 and rng.random() < 0.4:
        tilt, turn = _rotate(1, rng.uniform(0.2, 0.7)), 0.0  # upright, with its spine to one side
    for _ in range(stack):
        extent = np.array([rng.uniform(0.44, 0.55), 0.68, rng.uniform(0.08, 0.18)]) * rng.uniform(0.85, 1)
        matrix = tilt @ _rotate(2, turn + (rng.uniform(-0.35, 0.35) if stack > 1 else 0.0))
        _draw_box(layer, extent, lift + extent[2] / 2, matrix)
        lift += extent[2]


def _draw_open_book(layer: Layer) -> None:
    """Draw an open book from above: two curved pages of text over the edges of other pages and the cover."""
    rng = layer.rng
    wide, tall, bulge = rng.uniform(0.36, 0.46), rng.uniform(0.24, 0.31), rng.uniform(0.015, 0.04)
    paper = PAGE * rng.uniform(0.92, 1.04)

    def curve(way: int, start: float, end: float, y: float) -> np.ndarray:
        u = np.linspace(start, end, 16)
        return np.stack([way * u, y - bulge * np.sin(np.pi * np.minimum(u / wide, 1) ** 0.6)], axis=1)

    def band(way: int, start: float, end: float, top: float, bottom: float) -> np.ndarray:
        return np.concatenate([curve(way, start, end, top), curve(way, start, end, bottom)[::-1]])

    layer.add(_block(-wide - 0.03, -tall - 0.015, wide + 0.03, tall + 0.025, 0.01), layer.scene.pick(), CLOTH)
    # The shade, width, lower end and relief of two page edges, the page, and the shadow towards the fold.
    edges = [(0.86, wide + leaf, tall + leaf, 0.003) for leaf in (0.018, 0.009)]
    fold = [(shade, reach, tall, 0.001) for shade, reach in ((0.93, 0.07), (0.86, 0.045), (0.76, 0.024), (0.62, 0.01))]
    for way in (-1, 1):
        for shade, end, bottom, relief in (*edges, (1, wide, tall, 0.004), *fold):
            layer.add(band(way, 0, end, -tall, bottom), paper * shade, PAPER, relief)
        lines = np.arange(-tall + 0.05, tall - 0.04, rng.uniform(0.03, 0.042))
        picture = rng.integers(0, len(lines) - 3) if rng.random() < 0.4 else len(lines)
        for i, y in enumerate(lines):
            end = wide - 0.04 - (rng.uniform(0.05, 0.15) if rng.random() < 0.25 else 0)
            if not picture <= i < picture + 4:
                layer.line(curve(way, 0.06, end, y)[::way], INK * 1.8, 0.009)
        if picture < len(lines):
            top = lines[picture]
            layer.add(band(way, 0.07, wide - 0.05, top, top + 0.11), _pick_colour(rng), PAINT, 0.003)


def _painter(*shapes: tuple) -> Callable[[Layer], None]:
    """Return a painter of a thing.

    Args:
        shapes: an outline, colour, finish and relief, or the points, colour and width of a line; a colour is RGB or a
            factor of the thing's own colour.
    """

    def paint(layer: Layer) -> None:
        own = layer.scene.pick()
        for outline, colour, *rest in shapes:
            draw = layer.add if len(rest) == 2 else layer.line
            draw(outline, np.asarray(colour) if np.ndim(colour) else own * colour, *rest)

    return paint


def _lens(*points: tuple) -> np.ndarray:
    """A pointed oval from the first to the third of four points, and back by the last one."""
    start, above, end, below = points
    return np.concatenate([_bend(start, above, end), _bend(end, below, start)])


_cup = _painter(
    (_thicken(_bend((0.2, -0.1), (0.62, 0), (0.2, 0.12)), 0.07), 1, PAINT, 0.02),
    (_ellipse(-0.05, 0, 0.34, 0.34), 1, PAINT, 0.04),
    (_ellipse(-0.05, 0, 0.28, 0.28), 0.55, PAINT, 0.02),
    (_ellipse(-0.04, 0.01, 0.25, 0.25), (74, 44, 26), PAINT, 0.01),
)
_pencil = _painter(
    (_block(-0.34, -0.03, 0.4, 0.03), 1, PAINT, 0.02),
    (np.array([(-0.34, -0.03), (-0.46, 0), (-0.34, 0.03)]), WOODS[3], WOOD, 0.01),
    (np.array([(-0.43, -0.008), (-0.46, 0), (-0.43, 0.008)]), INK, PAINT, 0.004),
    (_block(0.4, -0.03, 0.47, 0.03, 0.01), PAINTS[-1], RUBBER, 0.015),
)
_leaf = _painter(
    (_lens((-0.36, 0), (0, -0.42), (0.46, 0), (0, 0.42)), 1, PAINT, 0.03),
    ([(-0.48, 0.03), (-0.3, 0), (0.4, 0)], 0.65, 0.015),
    *(([(x + 0.12, -0.1), (x, 0), (x + 0.12, 0.1)], 0.75, 0.01) for x in np.linspace(-0.24, 0.24, 5)),
)
_fruit = _painter(
    (_ellipse(0, 0, 0.36, 0.34), 1, PAINT, 0.12),
    ([(0, -0.1), (0.02, -0.26), (0.06, -0.36)], WOODS[4], 0.05),
    (_lens((0.04, -0.3), (0.16, -0.46), (0.36, -0.4), (0.2, -0.24)), PAINTS[4], PAINT, 0.015),
)
_T = np.linspace(0, 1, 90)[:, None]
_COIL = (0.12 + 0.28 * _T) * np.concatenate([np.cos(16.3 * _T), np.sin(16.3 * _T)], axis=1)
_rope = _painter(
    *((_thicken(part, 0.07), 1, CLOTH, 0.02) for part in (_COIL[:60], _COIL[50:])),  # in one, it would cross itself
    *((_COIL[[i - 1, i + 1]] * [(0.95, 0.95), (1.05, 1.05)], 0.7, 0.008) for i in range(1, 88, 2)),
)


def _stone(layer: Layer) -> None:
    wobble = 1 + 0.12 * np.interp(np.arange(48), np.arange(0, 49, 8), np.resize(layer.rng.uniform(-1, 1, 6), 7))
    radii = 0.4, layer.rng.uniform(0.24, 0.38)
    layer.add(CIRCLE * radii * wobble[:, None], layer.scene.pick() * 0.5 + 75, RUBBER, 0.09)


PAINTERS: dict[str, Callable[[Layer], None]] = {
    "Axe": _draw_axe,
    "Book": lambda layer: (_draw_open_book if layer.rng.random() < 0.3 else _draw_closed_books)(layer),
    "Hammer": _draw_hammer,
}
# With their usual sizes relative to the image's shorter side.
CLUTTER = ((_cup, 0.22), (_pencil, 0.22), (_leaf, 0.14), (_stone, 0.12), (_fruit, 0.15), (_rope, 0.18))


def _draw_surface(rng: np.random.Generator, size: tuple[int, int], colour: np.ndarray) -> Image.Image:
    """Draw a table, floor or wall at an angle: planks, cloth, tiles or plaster."""
    side = int(0.65 * max(size))
    noise, x = partial(_make_noise, rng, (side, side)), np.linspace(0, 1, side, dtype=np.float32)[None]
    y = x.T
    tone = 1 + 0.06 * noise((4, 4)) + 0.05 * noise((70, 70))
    blend = 0.5 + 0.5 * noise((2, 2))
    kind = rng.choice(["planks", "cloth", "tiles", "plaster"])
    if kind == "planks":
        rows = y * rng.uniform(4, 9)
        board = rows.astype(int)
        tone += 0.10 * noise((3, 110)) + rng.uniform(-0.10, 0.10, 16)[board]
        joint = (x + rng.uniform(0, 1, 16)[board]) % 0.9 < 0.006
        tone[(rows % 1 < 0.045) | joint] *= 0.65
    elif kind == "cloth":
        threads, bands = rng.uniform(100, 180), rng.uniform(3, 9, 2)
        tone += 0.07 * np.sin(x * threads) * np.sin(y * threads)
        blend = 0.5 * (x * bands[0] % 1 < 0.4) + rng.choice([0.0, 0.5]) * (y * bands[1] % 1 < 0.4)
    elif kind == "tiles":
        across, down = x * rng.uniform(3, 7), y * rng.uniform(3, 7)
        tone += rng.uniform(-0.08, 0.08, (8, 8))[down.astype(int), across.astype(int)]
        tone[(across % 1 < 0.035) | (down % 1 < 0.035)] *= 0.8
    else:
        tone += 0.10 * noise((12, 12)) + 0.08 * noise((30, 30))
    tone = 1 + 0.45 * (tone - 1)  # lower contrast than the things on it
    change = 0.2 * (_pick_colour(rng) - colour)
    pixels = (colour + change * blend[..., None]) * tone[..., None]
    flat = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    matrix = _rotate(0, rng.uniform(0, 0.35)) @ _rotate(2, rng.uniform(0, 2 * np.pi))
    return _warp(flat, _project(CORNERS * 1.75, matrix) * max(size) + np.array(size) / 2, size)


def _make_thing(paint: Callable[[Layer], None], extent: float, roll: float, scene: Scene) -> Image.Image:
    """Paint a thing at a higher resolution, roll it in its plane, tilt it, and crop it to its content.

    Its longer side is about `extent` pixels. The light is rotated by `-roll`, so that it is right after the roll.
    """
    layer = Layer(int(extent * 1.4), scene._replace(light=_rotate(2, -roll)[:2, :2].astype(np.float32) @ scene.light))
    paint(layer)
    tilt = _rotate(0, scene.rng.uniform(-0.3, 0.5)) @ _rotate(1, scene.rng.uniform(-0.35, 0.35))
    matrix = tilt @ _rotate(2, roll)
    covered = np.argwhere(np.asarray(layer.image.getchannel("A").resize((64, 64))) > 32)[:, ::-1] / 63 - 0.5
    content = _project(np.pad(covered, ((0, 0), (0, 1))), matrix)
    scale = extent / np.ptp(content, axis=0).max()
    quad = (_project(CORNERS, matrix) - content.min(axis=0)) * scale + 4
    thing = _warp(layer.image, quad, tuple(np.ceil(np.ptp(content, axis=0) * scale + 8).astype(int).tolist()))
    return thing.crop(thing.getbbox())


def _put(image: Image.Image, thing: Image.Image, corner: tuple[int, int], light: np.ndarray) -> None:
    """Paste a thing with its soft shadow, on the side away from the light."""
    reach = max(thing.size) * 0.035
    pad = int(4 * reach)
    alpha = Image.new("L", (thing.width + 2 * pad, thing.height + 2 * pad))
    alpha.paste(thing.getchannel("A").point(lambda value: value * 0.55), (pad, pad))
    soft = alpha.reduce(3).filter(ImageFilter.GaussianBlur(reach / 3)).resize(alpha.size)
    shift = (int(corner[0] - pad - light[0] * reach * 1.4), int(corner[1] - pad - light[1] * reach * 1.4))
    image.paste((16, 14, 20), shift, soft)
    image.paste(thing, corner, thing)


def _light_up(image: Image.Image, scene: Scene) -> Image.Image:
    """Apply tinted light that falls off with the distance from the lamp, then lens blur and sensor noise."""
    rng, t = scene.rng, np.linspace(-1, 1, 4)
    falloff = t[:, None] * scene.light[1] + t * scene.light[0]
    warmth = rng.normal(0, 0.07) * np.array([1, 0.1, -1])
    gain = rng.uniform(0.82, 1.12) * (1 + rng.uniform(0.05, 0.28) * falloff[..., None]) * (1 + warmth)
    gain = Image.fromarray((gain * 128).clip(0, 255).astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.2, 0.7)))
    lit = np.asarray(image, dtype=np.float32) / 128 * np.asarray(gain)
    lit += np.resize(rng.normal(0, rng.uniform(1, 5), 30011).astype(np.float32), lit.shape)
    return Image.fromarray(lit.clip(0, 255).astype(np.uint8))


def _scatter(image: Image.Image, mask: Image.Image, scene: Scene) -> None:
    """Put two to four other things where the object leaves room."""
    rng, covered = scene.rng, np.asarray(mask.resize((8, 8), Image.Resampling.BOX)).astype(int)
    for _ in range(rng.integers(2, 5)):
        cells = rng.permutation(covered.size)[:14]
        row, column = divmod(int(cells[covered.flat[cells].argmin()]), 8)
        covered[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] += 255
        paint, size = CLUTTER[rng.integers(len(CLUTTER))]
        thing = _make_thing(paint, min(image.size) * size * rng.uniform(0.8, 1.25), rng.uniform(0, 2 * np.pi), scene)
        x, y = (column + 0.5) / 8 * image.width, (row + 0.5) / 8 * image.height
        _put(image, thing, (int(x - thing.width / 2), int(y - thing.height / 2)), scene.light)


def draw(label: str, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Draw one image.

    Args:
        label: a key of `PAINTERS`.
        rng: determines everything that varies.

    Returns:
        An RGB image of 200 to 640 pixels per side, and the mask of its object (mode "L", same size, 255 on the object).
    """
    longer = int(250 + 390 * rng.random() ** 3)
    shorter = max(200, int(longer * rng.uniform(0.7, 1.0)))
    size = (longer, shorter) if rng.random() < 0.5 else (shorter, longer)
    angle = rng.uniform(0, 2 * np.pi)
    surface = 0.3 * _pick_colour(rng) + 0.7 * rng.uniform(80, 190)  # muted
    scene = Scene(rng, np.array([np.cos(angle), np.sin(angle)], dtype=np.float32), surface)
    image = _draw_surface(rng, size, surface)
    # Tools are long and thin: drawn larger, so that the share of the background does not reveal the class.
    roll, fill = (rng.normal(0, 0.2), 0.72) if label == "Book" else (rng.normal(0, 0.35), 1.0)
    thing = _make_thing(PAINTERS[label], shorter * fill * rng.triangular(0.8, 0.98, 0.98), roll, scene)
    corner = tuple(((np.array(size) - thing.size) * rng.uniform(-0.02, 1.02, 2)).astype(int).tolist())
    mask = Image.new("L", size)
    mask.paste(thing.getchannel("A").point(lambda alpha: 255 * (alpha > 127)), corner)
    _scatter(image, mask, scene)
    _put(image, thing, corner, scene.light)
    return _light_up(image, scene), mask
