"""What stands where in a synthetic scene, and what it is painted with: all drawn from one key."""

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.random import Generator, Philox

from framework.clock import key
from framework.data.solids import SOLIDS, Array, Index, Revolution, dot, turn, unit
from framework.errors import ConfigError

SCENE_CLASSES = ("background", *SOLIDS)
LATTICE = 16  # cells after which value noise repeats


class Pattern(IntEnum):
    """What a texture looks like."""

    CHECKER = 0
    STRIPES = 1
    DOTS = 2
    NOISE = 3


@dataclass(frozen=True, slots=True)
class Texture:
    """A pattern in space that blends two colours.

    Args:
        pattern: What the blend looks like.
        cell: Length of one cell, metres.
        phase: (3, 1) offset, cells.
        axis: (3, 1) unit vector across the stripes.
        colours: (2, 3) linear RGB reflectances in [0, 1].
    """

    pattern: Pattern
    cell: float
    phase: Array
    axis: Array
    colours: Array

    def value(self, point: Array, lattice: Array) -> Array:
        """Return how far each point (3, N), in metres, is from the first colour to the second, in [0, 1] (N,)."""
        cells = point / self.cell + self.phase
        match self.pattern:
            case Pattern.CHECKER:
                odd: Array = np.floor(cells).sum(axis=0) % 2
                return odd
            case Pattern.STRIPES:
                return np.floor(2 * dot(self.axis, cells)) % 2
            case Pattern.DOTS:  # balls that overlap a little, so that every plane cuts some
                offset = cells - np.floor(cells) - 0.5
                return (dot(offset, offset) < 0.3).astype(np.float64)
            case Pattern.NOISE:
                return _value_noise(cells, lattice)


@dataclass(frozen=True, slots=True)
class SolidObject:
    """One solid of a scene.

    Args:
        label: Index into `SCENE_CLASSES`.
        rotation: (3, 3), own axes to camera axes.
        half: (3, 1) half extents along its own axes, metres.
        centre: (3, 1) in camera coordinates, metres.
        texture: Its pattern, in its own coordinates.
    """

    label: int
    rotation: Array
    half: Array
    centre: Array
    texture: Texture

    def own(self, points: Array) -> Array:
        """Return points (3, N) of the camera's coordinates in the object's own, metres."""
        return turn(self.rotation.T, points - self.centre)

    def hit(self, origin: Array, ray: Array) -> tuple[Array, Index]:
        """Intersect rays (3, N): the parameter of the first hit (N,), inf for none, and the face hit (N,)."""
        solid = SOLIDS[SCENE_CLASSES[self.label]]
        return solid.hit(self.own(origin) / self.half, turn(self.rotation.T, ray) / self.half)

    def normal(self, points: Array, face: Index) -> Array:
        """Return outward unit normals (3, N) at points (3, N) of the given faces (N,)."""
        solid = SOLIDS[SCENE_CLASSES[self.label]]
        return unit(turn(self.rotation, solid.normal(self.own(points) / self.half, face) / self.half))


@dataclass(frozen=True, slots=True)
class Layout:
    """A scene in camera coordinates: x right, y down, z along the optical axis, metres, the camera at 0.

    Args:
        axes: (3, 3), columns: right, forward (horizontal), up.
        height: Camera above the ground, metres.
        wall: Distance of the wall along the forward axis, metres.
        light: (3, 1) unit vector towards the lamp.
        ground: The ground's texture, in `level` coordinates.
        backdrop: The wall's texture, likewise.
        lattice: Random numbers in [0, 1) for value noise, (LATTICE,) * 3.
        objects: The solids, in no order.
    """

    axes: Array
    height: float
    wall: float
    light: Array
    ground: Texture
    backdrop: Texture
    lattice: Array
    objects: tuple[SolidObject, ...]

    def level(self, points: Array) -> Array:
        """Return points (3, N) as (right, forward, up) from the point of the ground below the camera, metres."""
        return turn(self.axes.T, points + self.height * self.axes[:, 2:])


def draw_layout(seed: int, index: int, objects: tuple[int, int] = (3, 7)) -> Layout:
    """Draw scene `index` of the series `seed`, with the least to the most `objects`, both included.

    Raises:
        ConfigError: `objects` is no range within 0 to 255.
    """
    least, most = objects
    if not 0 <= least <= most <= 255:
        raise ConfigError(f"objects: [{least}, {most}] should be [least, most], both from 0 to 255")
    draw = Generator(Philox(key=key("scene", int(seed), int(index))))
    pitch, azimuth, slope = draw.uniform((0.14, -1.5, 0.7), (0.36, 1.5, 2.5))
    cos, sin = math.cos(pitch), math.sin(pitch)
    axes = np.array([[1.0, 0, 0], [0, -sin, -cos], [0, cos, -sin]])
    height, wall = draw.uniform((1.2, 6.8), (1.9, 8.5))
    spots: list[tuple[float, float, float]] = []
    return Layout(
        axes=axes,
        height=height,
        wall=wall,
        # High up and behind the camera, so that the wall and most visible faces are lit.
        light=turn(axes, unit(np.array([[math.sin(azimuth)], [-math.cos(azimuth)], [slope]]))),
        ground=_draw_texture(draw, 0.35, 0.8),
        backdrop=_draw_texture(draw, 0.5, 1.2),
        lattice=draw.random((LATTICE,) * 3),
        objects=tuple(_draw_object(draw, axes, height, spots) for _ in range(draw.integers(least, most + 1))),
    )


def _draw_object(draw: Generator, axes: Array, height: float, spots: list[tuple[float, float, float]]) -> SolidObject:
    """Draw a solid that rests on the ground, and add where it stands to `spots`: right, forward, radius in metres."""
    label = int(draw.integers(1, len(SCENE_CLASSES)))
    solid = SOLIDS[SCENE_CLASSES[label]]
    stretch = draw.uniform(-solid.stretch, solid.stretch, 3)
    if isinstance(solid, Revolution):
        stretch[1] = stretch[0]
    half = draw.uniform(0.3, 0.55) * np.array(solid.half) * np.exp(stretch)
    radius = 0.8 * math.sqrt(dot(half, half))
    for _ in range(20):  # in a crowded scene solids may run into each other, which does no harm
        forward = draw.uniform(2.4, 5.8)
        right = forward * draw.uniform(-0.45, 0.45)
        if all(math.hypot(right - x, forward - z) > radius + r for x, z, r in spots):
            break
    spots.append((right, forward, radius))
    tilt, rest = _pose(solid.taper, half, upright=draw.random() < 0.6)
    angle = draw.uniform(0, 2 * math.pi)
    spin = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    centre = turn(axes, np.array([[right], [forward], [rest - height]]))
    return SolidObject(label, turn(axes, turn(spin, tilt)), half[:, None], centre, _draw_texture(draw, 0.12, 0.3))


def _pose(taper: float, half: Array, upright: bool) -> tuple[Array, float]:
    """Return the rotation (3, 3) that stands a solid upright or lays it on its side, and its centre's height then."""
    down = np.array([0, 0, -1 / half[2]] if upright else [0, 1 / half[1], taper / half[2]])
    length = math.sqrt(dot(down, down))
    _, sin, cos = -down / length  # turns the normal of the plane it rests on, `down`, to (0, 0, -1)
    return np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]), (1 if upright else 1 - taper) / length


def _draw_texture(draw: Generator, finest: float, coarsest: float) -> Texture:
    """Draw a pattern with cells of `finest` to `coarsest` metres and two colours, one light and one dark."""
    hue, saturation = draw.random((2, 1)), draw.uniform(0.1, 0.9, (2, 1))
    value = draw.uniform(((0.45,), (0.05,)), ((0.95,), (0.25,)))
    pure = np.clip(np.abs((hue + np.array([0, 2, 1]) / 3) % 1 * 6 - 3) - 1, 0, 1)  # HSV to RGB
    return Texture(
        pattern=Pattern(int(draw.integers(len(Pattern)))),
        cell=draw.uniform(finest, coarsest),
        phase=draw.uniform(0, LATTICE, (3, 1)),
        axis=unit(draw.standard_normal((3, 1))),
        colours=value * (1 - saturation * (1 - pure)),
    )


def _value_noise(cells: Array, lattice: Array) -> Array:
    """Blend random numbers at the corners of unit cells smoothly, at points (3, N): values in [0, 1] (N,)."""
    corner = np.floor(cells)
    inside = cells - corner
    x, y, z = inside * inside * (3 - 2 * inside)
    i, j, k = corner.astype(np.intp) % LATTICE
    total = np.zeros_like(x)
    for a, along_x in ((i, 1 - x), ((i + 1) % LATTICE, x)):
        for b, along_y in ((j, 1 - y), ((j + 1) % LATTICE, y)):
            for c, along_z in ((k, 1 - z), ((k + 1) % LATTICE, z)):
                total += along_x * along_y * along_z * lattice[a, b, c]
    contrast: Array = np.clip(2 * total - 0.5, 0, 1)
    return contrast
