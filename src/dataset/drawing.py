"""Draws an axe, a book or a hammer: the artist of the offline sample.

From the bottom up: colours and materials, geometry, a layer to draw on, tools, books, everyday things, the scene.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

# One palette for handles, heads, covers, surfaces and clutter alike, so that a colour does not give the class away.
WOODS = ((196, 150, 98), (164, 112, 66), (122, 78, 46), (222, 188, 140), (92, 62, 44))
METALS = ((150, 156, 162), (112, 118, 126), (188, 192, 194), (66, 70, 76), (38, 40, 46))
PAINTS = (
    (178, 44, 40), (214, 96, 44), (226, 172, 60), (126, 142, 66), (46, 104, 74), (36, 124, 128), (74, 132, 178),
    (38, 66, 120), (98, 72, 130), (150, 62, 92), (236, 226, 206), (208, 200, 184), (190, 178, 160), (228, 150, 140),
)  # fmt: skip
PALETTE = WOODS + METALS + PAINTS
PAPER_COLOUR = np.array([238, 230, 210], dtype=np.float32)
INK = np.array([52, 48, 48], dtype=np.float32)

TONES = np.linspace(0, 2, 256)[:, None]  # from black over the colour itself to twice as light
CORNERS = np.array([(-0.5, -0.5, 0), (0.5, -0.5, 0), (0.5, 0.5, 0), (-0.5, 0.5, 0)])


class Finish(NamedTuple):
    """How a material takes the light: the depth of its grain, its gloss, and its grains across and down the shape."""

    grain: float
    gloss: float
    cells: tuple[int, int]


WOOD = Finish(0.18, 0.12, (14, 3))
STEEL = Finish(0.06, 0.75, (3, 24))
PAINT = Finish(0.04, 0.40, (3, 3))
RUBBER = Finish(0.06, 0.15, (24, 24))
CLOTH = Finish(0.06, 0.06, (80, 80))
PAPER = Finish(0.03, 0.00, (4, 4))


class Scene(NamedTuple):
    """What all drawings of an image share: chance, the direction to the lamp (a unit vector), the surface's colour."""

    rng: np.random.Generator
    light: np.ndarray
    backdrop: np.ndarray

    def pick(self, among: tuple = PALETTE) -> np.ndarray:
        """A colour that stands out from the surface: mostly one of `among`, at times any other."""
        while True:
            colour = _pick_colour(self.rng, among if self.rng.random() < 0.6 else PALETTE)
            if np.linalg.norm(colour - self.backdrop) > 95:
                return colour


def _pick_colour(rng: np.random.Generator, among: tuple = PALETTE) -> np.ndarray:
    """One of the colours, a little varied."""
    colour = np.array(among[rng.integers(len(among))]) * rng.uniform(0.85, 1.12) + rng.normal(0, 5, 3)
    return colour.clip(8, 247).astype(np.float32)


def _pick_surface_colour(rng: np.random.Generator) -> np.ndarray:
    """A muted colour, dark or pale, as tables, floors and walls have."""
    return 0.3 * _pick_colour(rng) + 0.7 * rng.uniform(80, 190)


def _make_noise(rng: np.random.Generator, size: tuple[int, int], cells: tuple[int, int]) -> np.ndarray:
    """Smooth noise about 0, float32 of shape (height, width), with so many cells across and down."""
    coarse = rng.uniform(-1, 1, (cells[1] + 1, cells[0] + 1)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))


# --- Geometry: points are arrays of shape (n, 2), and y points down ---


def _bend(start: tuple, control: tuple, end: tuple) -> np.ndarray:
    """A quadratic Bezier curve."""
    t = np.linspace(0, 1, 14)[:, None]
    return (1 - t) ** 2 * np.array(start) + 2 * t * (1 - t) * np.array(control) + t**2 * np.array(end)


def _thicken(path: np.ndarray, widths: np.ndarray | float) -> np.ndarray:
    """The outline of a line that is `widths` thick along its path."""
    along = np.gradient(path, axis=0)
    across = along[:, ::-1] * (-1, 1) / np.linalg.norm(along, axis=1, keepdims=True)
    half = across * np.broadcast_to(widths, len(path))[:, None] / 2
    return np.concatenate([path + half, (path - half)[::-1]])


def _ellipse(centre: tuple, radii: tuple, wobble: np.ndarray | float = 1.0) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return np.array(centre) + np.stack([np.cos(angle), np.sin(angle)], axis=1) * radii * np.reshape(wobble, (-1, 1))


def _block(left: float, top: float, right: float, bottom: float, chamfer: float = 0.0) -> np.ndarray:
    """A rectangle with its corners cut off."""
    xs, ys = (left, left + chamfer, right - chamfer, right), (top, top + chamfer, bottom - chamfer, bottom)
    order = ((1, 0), (2, 0), (3, 1), (3, 2), (2, 3), (1, 3), (0, 2), (0, 1))
    return np.array([(xs[i], ys[j]) for i, j in order])


def _rotate(axis: int, angle: float) -> np.ndarray:
    """The matrix that turns by `angle` radians about an axis (0 is x, 1 is y, 2 is z, towards the eye)."""
    i, j = ((1, 2), (2, 0), (0, 1))[axis]
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = np.cos(angle)
    matrix[i, j], matrix[j, i] = -np.sin(angle), np.sin(angle)
    return matrix


def _project(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points in space, turned and seen from three units away: shape (n, 3) to (n, 2)."""
    turned = points @ matrix.T
    return turned[:, :2] * 3 / (3 - turned[:, 2:])


def _warp(image: Image.Image, quad: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """The image with its corners (clockwise from the upper left) moved to `quad`, in pixels, on a new canvas."""
    right, bottom = image.width - 1, image.height - 1
    rows, targets = [], []
    for (x, y), (u, v) in zip(quad, ((1, 1), (right, 1), (right, bottom), (1, bottom)), strict=True):
        rows += [(x, y, 1, 0, 0, 0, -u * x, -u * y), (0, 0, 0, x, y, 1, -v * x, -v * y)]
        targets += [u, v]
    return image.transform(
        size, Image.Transform.PERSPECTIVE, np.linalg.solve(rows, targets).tolist(), Image.Resampling.BILINEAR
    )


class Layer:
    """A transparent square to draw on. Its unit is its side, and (0, 0) its centre."""

    def __init__(self, side: int, scene: Scene):
        self.image = Image.new("RGBA", (side, side))
        self.side, self.scene, self.rng = side, scene, scene.rng

    def _cut(self, outline: np.ndarray, pad: int = 0) -> tuple[Image.Image, tuple[int, int], np.ndarray]:
        """The mask of an outline, the pixel where its upper left corner belongs, and the outline in its pixels."""
        pixels = (outline + 0.5) * self.side
        corner = np.floor(pixels.min(axis=0)).astype(int) - pad
        pixels = pixels - corner
        mask = Image.new("L", tuple((2 * (np.ceil(pixels.max(axis=0)).astype(int) + pad + 1)).tolist()))
        ImageDraw.Draw(mask).polygon((2 * pixels).ravel().tolist(), fill=255)
        return mask.reduce(2), tuple(corner.tolist()), pixels

    def add(self, outline: np.ndarray, colour: np.ndarray, finish: Finish, relief: float = 0.008) -> None:
        """Fills an outline. Its edges are rounded over `relief`, so that they catch the light or lose it."""
        mask, corner, _ = self._cut(outline, pad=int(2 * relief * self.side) + 1)
        soft = mask.reduce(2).filter(ImageFilter.GaussianBlur(relief * self.side / 2))  # half the size is fine enough
        height = np.asarray(soft, dtype=np.float32) * (0.0018 * relief * self.side)
        right, down = self.scene.light.tolist()
        tone = 0.96 + finish.grain * _make_noise(self.rng, soft.size, finish.cells)
        tone[:, 1:-1] += right * (height[:, :-2] - height[:, 2:])
        tone[1:-1] += down * (height[:-2] - height[2:])
        # A picture of tones with a palette from the shadow over the colour to the highlight is quickly painted.
        palette = colour * TONES + 340 * finish.gloss * (TONES - 1.15).clip(0) ** 2
        painted = Image.fromarray((tone * 127.5).clip(0, 255).astype(np.uint8)).resize(mask.size)
        painted.putpalette(palette.clip(0, 255).astype(np.uint8).tobytes())
        self.image.paste(painted.convert("RGB"), corner, mask)

    def line(self, points: np.ndarray | list, colour: np.ndarray, width: float) -> None:
        """Draws a plain line."""
        pixels = ((np.asarray(points) + 0.5) * self.side).ravel().tolist()
        ink = tuple(int(value) for value in colour)
        ImageDraw.Draw(self.image).line(pixels, fill=ink, width=max(1, round(width * self.side)), joint="curve")

    def add_face(self, face: Image.Image, quad: np.ndarray, brightness: float) -> None:
        """Spreads a square picture over a quadrilateral."""
        mask, corner, pixels = self._cut(quad)
        lit = face.convert("RGB").point(lambda value: value * brightness)
        self.image.paste(_warp(lit, pixels, mask.size), corner, mask)


# --- Tools: upright, the head at the top ---


def _draw_handle(layer: Layer, width: float, sway: float, foot: float) -> None:
    """A handle from top to bottom that sways sideways and widens by `foot` at its end; half of them with a grip."""
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
    """A felling axe, a hatchet (a larger head for its handle) or a double-bitted axe."""
    rng = layer.rng
    double = rng.random() < 0.25
    size = rng.uniform(1.35, 1.8)
    width = rng.uniform(0.042, 0.06) * size**0.5
    _draw_handle(layer, width, 0 if double else rng.uniform(-0.03, 0.03), rng.uniform(0.1, 0.7))
    y, eye, tall = -0.33, width * 0.62, 0.065 * size
    reach, toe, heel = rng.uniform([0.2, 0.11, 0.12], [0.27, 0.15, 0.2]) * size
    colour = layer.scene.pick(METALS)
    finish = STEEL if rng.random() < 0.7 else PAINT
    edge_colour = np.array([216, 221, 225]) * rng.uniform(0.95, 1.1)
    for way in (-1, 1) if double else (-1,):
        upper = _bend((way * -eye, y - tall), (way * reach * 0.6, y - tall * 0.9), (way * reach, y - toe))
        edge = _bend((way * reach, y - toe), (way * reach * 1.22, y + (heel - toe) / 2), (way * reach * 0.95, y + heel))
        lower = _bend((way * reach * 0.95, y + heel), (way * reach * 0.5, y + tall * 0.9), (way * -eye, y + tall))
        layer.add(np.concatenate([upper, edge, lower]), colour, finish, 0.012)
        layer.add(np.concatenate([edge, edge[::-1] * (0.8, 1)]), edge_colour, STEEL, 0.008)
    if not double:
        poll = rng.uniform(0.07, 0.1) * size
        layer.add(_block(-eye, y - tall, poll, y + tall, 0.012), colour, finish, 0.012)
    layer.line([(-eye, y - tall), (-eye, y + tall)], colour * 0.7, 0.005)


def _draw_hammer(layer: Layer) -> None:
    """A claw hammer, a sledge or a ball-peen hammer."""
    rng = layer.rng
    size, width = rng.uniform(1.6, 2.1), rng.uniform(0.055, 0.08)
    _draw_handle(layer, width, rng.uniform(-0.012, 0.012), rng.uniform(0, 0.4))
    y, half = -0.36, width * 0.75
    colour = layer.scene.pick(METALS)
    finish = STEEL if rng.random() < 0.75 else PAINT
    kind = rng.choice(["claw", "sledge", "ball-peen"], p=[0.45, 0.3, 0.25])
    if kind == "sledge":
        reach, tall = rng.uniform([0.14, 0.065], [0.19, 0.09]) * size
        layer.add(_block(-reach, y - tall, reach, y + tall, 0.022), colour, finish, 0.016)
        for way in (-1, 1):
            layer.line([(way * (reach - 0.03), y - tall), (way * (reach - 0.03), y + tall)], colour * 0.72, 0.006)
        return
    neck, tall, reach = 0.055 * size, 0.045 * size, rng.uniform(0.13, 0.17) * size
    layer.add(_block(0, y - neck / 2, reach, y + neck / 2), colour, finish, 0.014)
    layer.add(_block(reach - 0.055 * size, y - tall, reach, y + tall, 0.01), colour * 1.06, finish, 0.016)
    if kind == "claw":
        claw = _bend((0, y), (-0.11 * size, y - 0.03 * size), (-0.17 * size, y + rng.uniform(0.05, 0.1) * size))
        layer.add(_thicken(claw, np.linspace(0.085, 0.014, len(claw)) * size), colour, finish, 0.014)
    else:
        layer.add(_block(-0.1 * size, y - neck / 2, 0, y + neck / 2), colour, finish, 0.014)
        layer.add(_ellipse((-0.12 * size, y), (0.055 * size, 0.052 * size)), colour * 1.04, finish, 0.024)
    layer.add(_block(-half, y - 0.055 * size, half, y + 0.055 * size, 0.012), colour, finish, 0.012)


# --- Books ---


def _draw_cover(layer: Layer, colour: np.ndarray, accent: np.ndarray, aspect: float) -> None:
    """A front cover over the whole layer: cloth or paper, a hinge, a title and an ornament."""
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
        emblem = _ellipse((0.03, 0.16), (radius, radius * aspect))[:: 48 // sides]
        layer.add(emblem, accent, PAINT, 0.006)
        if rng.random() < 0.6:
            layer.add((emblem - (0.03, 0.16)) * 0.6 + (0.03, 0.16), colour * 0.85, PAINT, 0.004)
    layer.line([(0.03 - 0.12, 0.4), (0.03 + 0.12, 0.4)], accent, 0.02)
    layer.line([(-0.43, -0.5), (-0.43, 0.5)], colour * 0.72, 0.014)


def _draw_pages(layer: Layer, colour: np.ndarray) -> None:
    """The side of a closed book over the whole layer: leaves between two boards."""
    layer.add(_block(-0.5, -0.5, 0.5, 0.5), PAPER_COLOUR, PAPER, 0.002)
    for y in layer.rng.uniform(-0.4, 0.4, 14):
        layer.line([(-0.5, y), (0.5, y)], PAPER_COLOUR * layer.rng.uniform(0.72, 0.92), 0.012)
    layer.line([(-0.5, -0.36), (0.5, -0.36)], PAPER_COLOUR * 0.6, 0.05)
    for y in (-0.45, 0.45):
        layer.line([(-0.5, y), (0.5, y)], colour, 0.12)


def _draw_spine(layer: Layer, colour: np.ndarray, accent: np.ndarray) -> None:
    """The back of a book over the whole layer: bands and a title."""
    layer.add(_block(-0.5, -0.5, 0.5, 0.5), colour, CLOTH, 0.12)
    for x in (-0.42, -0.36, 0.36, 0.42):
        layer.line([(x, -0.5), (x, 0.5)], accent, 0.016)
    layer.line([(-0.22, 0), (layer.rng.uniform(0.05, 0.22), 0)], accent, 0.3)


def _draw_box(layer: Layer, extent: np.ndarray, lift: float, matrix: np.ndarray) -> None:
    """A closed book of so much width, height and thickness, `lift` above the ground, turned by `matrix`."""
    colour, accent = layer.scene.pick(), _pick_colour(layer.rng)
    while np.linalg.norm(colour - accent) < 110:
        accent = _pick_colour(layer.rng)
    lamp = np.array([*layer.scene.light, 1.1]) / 1.5
    painters: list[Callable[[Layer], None]] = [
        lambda face: _draw_spine(face, colour, accent),
        *[lambda face: _draw_pages(face, colour)] * 3,
        lambda face: _draw_cover(face, colour, accent, extent[0] / extent[1]),
    ]
    # The sides hang from two corners of the cover: at the left the spine, then the head, the fore edge and the tail.
    cover, down = np.add(CORNERS, (0, 0, 0.5)), (0, 0, 1)
    quads = [
        np.array([cover[a], cover[b], cover[b] - down, cover[a] - down]) for a, b in ((0, 3), (1, 0), (2, 1), (3, 2))
    ] + [cover]
    normals = [(-1, 0, 0), (0, -1, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    for quad, normal, paint in zip(quads, normals, painters, strict=True):
        seen = _project(quad * extent + (0, 0, lift), matrix)
        edges = seen[1] - seen[0], seen[3] - seen[0]
        if edges[0][0] * edges[1][1] <= edges[0][1] * edges[1][0]:  # it faces away
            continue
        face = Layer(layer.side * 2 // 3 if normal[2] else 160, layer.scene)
        paint(face)
        picture = face.image if normal[2] else face.image.reduce((1, 5))  # sides are low: averaged, they stay smooth
        layer.add_face(picture, seen, 0.55 + 0.5 * max(0.0, float(matrix @ normal @ lamp)))


def _draw_closed_books(layer: Layer) -> None:
    """One book, lying or standing, or a stack of two or three."""
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
    """An open book from above: two curved pages of text, over the edges of the leaves below and the cover."""
    rng = layer.rng
    wide, tall, bulge = rng.uniform(0.36, 0.46), rng.uniform(0.24, 0.31), rng.uniform(0.015, 0.04)
    paper = PAPER_COLOUR * rng.uniform(0.92, 1.04)

    def curve(way: int, start: float, end: float, y: float) -> np.ndarray:
        u = np.linspace(start, end, 16)
        return np.stack([way * u, y - bulge * np.sin(np.pi * np.minimum(u / wide, 1) ** 0.6)], axis=1)

    def band(way: int, start: float, end: float, top: float, bottom: float) -> np.ndarray:
        return np.concatenate([curve(way, start, end, top), curve(way, start, end, bottom)[::-1]])

    layer.add(_block(-wide - 0.03, -tall - 0.015, wide + 0.03, tall + 0.025, 0.01), layer.scene.pick(), CLOTH)
    for way in (-1, 1):
        for leaf in (0.018, 0.009):
            layer.add(band(way, 0, wide + leaf, -tall, tall + leaf), paper * 0.86, PAPER, 0.003)
        layer.add(band(way, 0, wide, -tall, tall), paper, PAPER, 0.004)
        for shade, reach in ((0.93, 0.07), (0.86, 0.045), (0.76, 0.024), (0.62, 0.01)):
            layer.add(band(way, 0, reach, -tall, tall), paper * shade, PAPER, 0.001)
        lines = np.arange(-tall + 0.05, tall - 0.04, rng.uniform(0.03, 0.042))
        picture = rng.integers(0, len(lines) - 3) if rng.random() < 0.4 else len(lines)
        for i, y in enumerate(lines):
            end = wide - 0.04 - (rng.uniform(0.05, 0.15) if rng.random() < 0.25 else 0)
            if not picture <= i < picture + 4:
                layer.line(curve(way, 0.06, end, y)[::way], INK * 1.8, 0.009)
        if picture < len(lines):
            top = lines[picture]
            layer.add(band(way, 0.07, wide - 0.05, top, top + 0.11), _pick_colour(rng), PAINT, 0.003)


def _draw_book(layer: Layer) -> None:
    """A closed book or more, or an open one."""
    (_draw_open_book if layer.rng.random() < 0.3 else _draw_closed_books)(layer)


# --- Everyday things that lie about with every class ---


def _draw_cup(layer: Layer) -> None:
    colour = layer.scene.pick()
    layer.add(_thicken(_bend((0.2, -0.1), (0.62, 0), (0.2, 0.12)), 0.07), colour, PAINT, 0.02)
    layer.add(_ellipse((-0.05, 0), (0.34, 0.34)), colour, PAINT, 0.04)
    layer.add(_ellipse((-0.05, 0), (0.28, 0.28)), colour * 0.55, PAINT, 0.02)
    layer.add(_ellipse((-0.04, 0.01), (0.25, 0.25)), np.array([74, 44, 26]), PAINT, 0.01)


def _draw_pencil(layer: Layer) -> None:
    layer.add(_block(-0.34, -0.03, 0.4, 0.03), layer.scene.pick(), PAINT, 0.02)
    layer.add(np.array([(-0.34, -0.03), (-0.46, 0), (-0.34, 0.03)]), np.array(WOODS[3]), WOOD, 0.01)
    layer.add(np.array([(-0.43, -0.008), (-0.46, 0), (-0.43, 0.008)]), INK, PAINT, 0.004)
    layer.add(_block(0.4, -0.03, 0.47, 0.03, 0.01), np.array(PAINTS[-1]), RUBBER, 0.015)


def _draw_leaf(layer: Layer) -> None:
    colour, tip, stem = layer.scene.pick(), (0.46, 0), (-0.36, 0)
    layer.add(np.concatenate([_bend(stem, (0, -0.42), tip), _bend(tip, (0, 0.42), stem)]), colour, PAINT, 0.03)
    layer.line([(-0.48, 0.03), (-0.3, 0), (0.4, 0)], colour * 0.65, 0.015)
    for x in np.linspace(-0.24, 0.24, 5):
        layer.line([(x + 0.12, -0.1), (x, 0), (x + 0.12, 0.1)], colour * 0.75, 0.01)


def _draw_stone(layer: Layer) -> None:
    wobble = 1 + 0.12 * np.interp(np.arange(48), np.arange(0, 49, 8), np.resize(layer.rng.uniform(-1, 1, 6), 7))
    radii = 0.4, layer.rng.uniform(0.24, 0.38)
    layer.add(_ellipse((0, 0), radii, wobble), layer.scene.pick() * 0.5 + 75, RUBBER, 0.09)


def _draw_fruit(layer: Layer) -> None:
    colour = layer.scene.pick()
    layer.add(_ellipse((0, 0), (0.36, 0.34)), colour, PAINT, 0.12)
    layer.line([(0, -0.1), (0.02, -0.26), (0.06, -0.36)], np.array(WOODS[4]), 0.05)
    stem, tip = (0.04, -0.3), (0.36, -0.4)
    leaf = np.concatenate([_bend(stem, (0.16, -0.46), tip), _bend(tip, (0.2, -0.24), stem)])
    layer.add(leaf, np.array(PAINTS[4]), PAINT, 0.015)


def _draw_rope(layer: Layer) -> None:
    t, colour = np.linspace(0, 1, 90)[:, None], layer.scene.pick()
    path = (0.12 + 0.28 * t) * np.concatenate([np.cos(16.3 * t), np.sin(16.3 * t)], axis=1)
    for part in (path[:60], path[50:]):  # the outline of the whole coil would cross itself
        layer.add(_thicken(part, 0.07), colour, CLOTH, 0.02)
    for i in range(1, 88, 2):
        layer.line(path[[i - 1, i + 1]] * [(0.95, 0.95), (1.05, 1.05)], colour * 0.7, 0.008)


PAINTERS: dict[str, Callable[[Layer], None]] = {"Axe": _draw_axe, "Book": _draw_book, "Hammer": _draw_hammer}
CLUTTER = (  # with their usual sizes, in parts of the image's shorter side
    (_draw_cup, 0.22), (_draw_pencil, 0.22), (_draw_leaf, 0.14),
    (_draw_stone, 0.12), (_draw_fruit, 0.15), (_draw_rope, 0.18),
)  # fmt: skip


# --- The scene ---


def _draw_surface(rng: np.random.Generator, side: int, colour: np.ndarray) -> Image.Image:
    """A square of a table, floor or wall: planks, cloth, tiles or plaster."""
    size, x = (side, side), np.linspace(0, 1, side, dtype=np.float32)[None]
    y = x.T
    tone = 1 + 0.06 * _make_noise(rng, size, (4, 4)) + 0.05 * _make_noise(rng, size, (70, 70))
    blend = 0.5 + 0.5 * _make_noise(rng, size, (2, 2))
    kind = rng.choice(["planks", "cloth", "tiles", "plaster"])
    if kind == "planks":
        rows = y * rng.uniform(4, 9)
        board = rows.astype(int)
        tone += 0.10 * _make_noise(rng, size, (3, 110)) + rng.uniform(-0.10, 0.10, 16)[board]
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
        tone += 0.10 * _make_noise(rng, size, (12, 12)) + 0.08 * _make_noise(rng, size, (30, 30))
    tone = 1 + 0.45 * (tone - 1)  # a surface that is quieter than what lies on it
    change = 0.2 * (_pick_colour(rng) - colour)
    bands = [(first + more * blend) * tone for first, more in zip(colour.tolist(), change.tolist(), strict=True)]
    return Image.merge("RGB", [Image.fromarray(band.clip(0, 255).astype(np.uint8)) for band in bands])


def _draw_background(rng: np.random.Generator, size: tuple[int, int], colour: np.ndarray) -> Image.Image:
    """A surface seen at an angle, a little out of focus."""
    flat = _draw_surface(rng, int(0.65 * max(size)), colour)
    matrix = _rotate(0, rng.uniform(0, 0.35)) @ _rotate(2, rng.uniform(0, 2 * np.pi))
    return _warp(flat, _project(CORNERS * 1.75, matrix) * max(size) + np.array(size) / 2, size)


def _make_thing(paint: Callable[[Layer], None], extent: float, roll: float, scene: Scene) -> Image.Image:
    """Something painted at a higher resolution, rolled in its plane, tilted a little and cut to its content.

    Its longer side is about `extent` pixels. The light is turned the other way, so that it is right after the roll.
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
    """Pastes the thing with the soft shadow that it throws away from the light."""
    reach = max(thing.size) * 0.035
    pad = int(4 * reach)
    alpha = Image.new("L", (thing.width + 2 * pad, thing.height + 2 * pad))
    alpha.paste(thing.getchannel("A").point(lambda value: value * 0.55), (pad, pad))
    soft = alpha.reduce(3).filter(ImageFilter.GaussianBlur(reach / 3)).resize(alpha.size)
    shift = (int(corner[0] - pad - light[0] * reach * 1.4), int(corner[1] - pad - light[1] * reach * 1.4))
    image.paste((16, 14, 20), shift, soft)
    image.paste(thing, corner, thing)


def _light_up(image: Image.Image, scene: Scene) -> Image.Image:
    """Light that falls off away from the lamp, with a tint, then the lens's blur and the sensor's noise."""
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
    """Puts everyday things where there is room beside the object."""
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
    """Draws one image.

    Args:
        label: a key of `PAINTERS`.
        rng: decides all that varies.

    Returns:
        An RGB image of 200 to 640 pixels a side, and the mask of its object (mode "L", same size, 255 on the object).
    """
    longer = int(250 + 390 * rng.random() ** 3)
    shorter = max(200, int(longer * rng.uniform(0.7, 1.0)))
    size = (longer, shorter) if rng.random() < 0.5 else (shorter, longer)
    angle = rng.uniform(0, 2 * np.pi)
    scene = Scene(rng, np.array([np.cos(angle), np.sin(angle)], dtype=np.float32), _pick_surface_colour(rng))
    image = _draw_background(rng, size, scene.backdrop)
    # Tools are long and thin: drawn larger, so that not the share of the background tells the classes apart.
    roll, fill = (rng.normal(0, 0.2), 0.72) if label == "Book" else (rng.normal(0, 0.35), 1.0)
    thing = _make_thing(PAINTERS[label], shorter * fill * rng.triangular(0.8, 0.98, 0.98), roll, scene)
    slack = np.array(size) - thing.size
    corner = tuple((slack * rng.uniform(-0.02, 1.02, 2)).astype(int).tolist())
    mask = Image.new("L", size)
    mask.paste(thing.getchannel("A").point(lambda alpha: 255 * (alpha > 127)), corner)
    _scatter(image, mask, scene)
    _put(image, thing, corner, scene.light)
    return _light_up(image, scene), mask
