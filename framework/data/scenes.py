"""A deterministic renderer of textured scenes whose class, boxes, masks and metric depth are exact."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator, Philox
from numpy.typing import NDArray

from framework.clock import key
from framework.data.scene_layout import SCENE_CLASSES, Layout, SolidObject, draw_layout
from framework.data.solids import Array, Index, dot, turn, unit
from framework.errors import ConfigError

__all__ = ["SCENE_CLASSES", "Scene", "render_scene"]

AMBIENT = 0.35  # light that reaches every surface; the lamp gives the rest
FOCAL = 1.0  # focal length in units of the image's shorter side
NOISE = 2.5  # standard deviation of the sensor noise, grey levels


@dataclass(frozen=True, slots=True)
class Scene:
    """One image and everything that is true of it.

    An object of fewer visible pixels than asked for is not listed: its pixels keep their class in `mask` and their
    `depth`, but are 0 in `instances`.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) uint8, index into `SCENE_CLASSES`; 0 = background, the ground and the wall.
        instances: (H, W) uint8, i + 1 where object i of `boxes` and `labels` is visible, else 0.
        boxes: (N, 4) float32 (x1, y1, x2, y2) in pixels, tight around the visible pixels; x2 and y2 are one past the
            last column and row.
        labels: (N,) int64 in 1..K, index into `SCENE_CLASSES`.
        depth: (H, W) float32, z-depth in metres (along the optical axis, not along the ray); known everywhere.
        label: Class of the listed object with the most visible pixels; 0 if none is listed.
        intrinsics: (3, 3) float64 pinhole matrix in pixels; the centre of the first pixel is at (0.5, 0.5).
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    instances: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    depth: NDArray[np.float32]
    label: int
    intrinsics: Array


def render_scene(
    seed: int, index: int, size: tuple[int, int], objects: tuple[int, int] = (3, 7), min_pixels: int = 12
) -> Scene:
    """Render scene `index` of the endless series `seed`: the same bits on every run, the same content at every size.

    Args:
        seed: Series.
        index: Scene within the series.
        size: (height, width), pixels. The shorter side sees 53 degrees.
        objects: Least and most objects in the scene, both included.
        min_pixels: Objects with fewer visible pixels are not listed.

    Raises:
        ConfigError: The size is not positive, or `objects` is no range within 0 to 255.
    """
    height, width = size
    if min(size) < 1:
        raise ConfigError(f"image_size: a scene needs at least 1x1 pixels, got {height}x{width}")
    layout = draw_layout(seed, index, objects)
    focal = FOCAL * min(size)
    intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    rows, columns = np.indices(size).reshape(2, -1) + 0.5
    rays = np.stack([(columns - width / 2) / focal, (rows - height / 2) / focal, np.ones(rows.size)])
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # what rays do that miss
        depth, surface, normals = _first_hits(layout, rays, intrinsics, size)
        radiance = _shade(layout, rays * depth, surface, normals, focal / depth).reshape(height, width, 3)
    noise = Generator(Philox(key=key("scene noise", int(seed), int(index)))).standard_normal(
        radiance.shape, dtype=np.float32
    )
    image = np.rint(255 * np.sqrt(_blur(radiance)) + NOISE * noise)  # a display gamma of 2

    surface = surface.reshape(size)
    classes = np.array([0, *(item.label for item in layout.objects), 0])  # of the ground, the objects, the wall
    areas = np.bincount(surface.ravel(), minlength=len(classes)) * (classes > 0)
    listed = np.flatnonzero(areas >= max(1, min_pixels))
    number = np.zeros(len(classes), np.uint8)
    number[listed] = np.arange(1, len(listed) + 1)
    return Scene(
        image=image.clip(0, 255).astype(np.uint8),
        mask=classes.astype(np.uint8)[surface],
        instances=number[surface],
        boxes=np.array([_box(surface == item) for item in listed], np.float32).reshape(-1, 4),
        labels=classes[listed].astype(np.int64),
        depth=depth.reshape(size).astype(np.float32),
        label=int(classes[listed[areas[listed].argmax()]]) if len(listed) else 0,
        intrinsics=intrinsics,
    )


def _first_hits(layout: Layout, rays: Array, intrinsics: Array, size: tuple[int, int]) -> tuple[Array, Index, Array]:
    """Find what each ray (3, P) with z = 1 meets first.

    Returns:
        The z-depth (P,), the surface (P,) (0 the ground, then the objects, last the wall), unit normals (3, P).
    """
    _, forward, up = layout.axes.T[:, :, None]
    ground, wall = -layout.height / dot(up, rays), layout.wall / dot(forward, rays)
    low = (ground > 0) & ~((wall > 0) & (wall < ground))
    depth, surface = np.where(low, ground, wall), np.where(low, 0, len(layout.objects) + 1)
    normals = np.where(low, up, -forward)
    for number, item in enumerate(layout.objects, start=1):
        pixels = _footprint(item, intrinsics, size)
        found, face = item.hit(np.zeros((3, 1)), rays[:, pixels])  # rays have z = 1: the parameter is the z-depth
        nearer = found < depth[pixels]
        pixels, found, face = pixels[nearer], found[nearer], face[nearer]
        depth[pixels], surface[pixels] = found, number
        normals[:, pixels] = item.normal(rays[:, pixels] * found, face)
    return depth, surface, normals


def _footprint(item: SolidObject, intrinsics: Array, size: tuple[int, int]) -> Index:
    """Return the flat indices of the pixels that an object may cover: those between its projected corners."""
    corners = item.centre + turn(item.rotation, item.half * (2 * np.indices((2, 2, 2)).reshape(3, -1) - 1))
    x, y, z = turn(intrinsics, corners)  # objects stand far enough away for z > 0
    left, right = np.clip([(x / z).min(), (x / z).max() + 1], 0, size[1]).astype(int)
    top, bottom = np.clip([(y / z).min(), (y / z).max() + 1], 0, size[0]).astype(int)
    return (np.arange(top, bottom)[:, None] * size[1] + np.arange(left, right)).ravel()


def _shade(layout: Layout, points: Array, surface: Index, normals: Array, scale: Array) -> Array:
    """Return the linear RGB (P, 3) in [0, 1] of points (3, P), by Lambert's law.

    One distant lamp casts shadows, and ambient light fills them. `surface` (P,) and `normals` (3, P) are those of
    `_first_hits`; `scale` (P,) is in pixels per metre.
    """
    textures = [layout.ground, *(item.texture for item in layout.objects), layout.backdrop]
    value = np.empty(len(surface))
    for number, texture in enumerate(textures):
        pixels = np.flatnonzero(surface == number)
        own = layout.objects[number - 1].own if 0 < number <= len(layout.objects) else layout.level
        value[pixels] = texture.value(own(points[:, pixels]), layout.lattice)
    # A pattern finer than the pixels fades to its mean, where it would flicker.
    cell = np.array([texture.cell for texture in textures])[surface]
    sharpness = np.clip(cell * scale * np.abs(dot(normals, unit(points))) - 0.5, 0, 1)
    blend = 0.5 + sharpness * (value - 0.5)
    first, second = np.stack([texture.colours for texture in textures], axis=1)
    colour: Array = first[surface] + blend[:, None] * (second - first)[surface]
    lit = dot(normals, layout.light).clip(0) * ~_shadowed(layout, points + 1e-4 * normals)
    return colour * (AMBIENT + (1 - AMBIENT) * lit)[:, None]


def _shadowed(layout: Layout, points: Array) -> NDArray[np.bool_]:
    """Return for each of the points (3, P) whether an object stands between it and the lamp (P,)."""
    across = unit(np.cross(layout.light, layout.axes[:, :1], axis=0))
    frame = np.hstack([across, np.cross(layout.light, across, axis=0), layout.light])
    seen = turn(frame.T, points)  # from the lamp: two coordinates across the light, one towards it
    shadow = np.zeros(points.shape[1], np.bool_)
    for item in layout.objects:
        x, y, z = seen - turn(frame.T, item.centre)
        radius2 = dot(item.half, item.half)
        near = np.flatnonzero((x * x + y * y < radius2) & (z < np.sqrt(radius2)))
        found, _ = item.hit(points[:, near], layout.light)
        shadow[near] |= np.isfinite(found)
    return shadow


def _blur(radiance: Array) -> Array:
    """Spread the light (H, W, 3) as a lens does: an eighth of it to each neighbour, along columns, then rows."""
    for _ in range(2):
        padded = np.pad(radiance, ((1, 1), (0, 0), (0, 0)), mode="edge")
        radiance = (0.75 * radiance + 0.125 * (padded[:-2] + padded[2:])).swapaxes(0, 1)
    return radiance


def _box(region: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return (x1, y1, x2, y2) around the true pixels of (H, W), x2 and y2 one past the last."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
