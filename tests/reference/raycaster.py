"""A slow ray-caster that asks only whether a point is inside: nothing in it is shared with the renderer's algebra."""

import math

from framework.data.scene_layout import SCENE_CLASSES, Layout


def _inside(name: str, x: float, y: float, z: float) -> bool:
    """Whether a point is inside the canonical solid of that name."""
    across = math.hypot(x, y)
    match name:
        case "sphere":
            return across**2 + z**2 <= 1
        case "cylinder":
            return across <= 1 and abs(z) <= 1
        case "cone":
            return abs(z) <= 1 and across <= (1 - z) / 2
        case "ring":
            return math.sqrt(0.4) <= across <= 1 and abs(z) <= 1
        case "box":
            return max(abs(x), abs(y), abs(z)) <= 1
        case "pyramid":
            return abs(z) <= 1 and max(abs(x), abs(y)) <= (1 - z) / 2
    raise AssertionError(name)


def _times(matrix, vector):
    return [sum(float(matrix[i][j]) * vector[j] for j in range(3)) for i in range(3)]


def cast(layout: Layout, start, ray, step: float = 0.004, reach: float = 15.0) -> tuple[float, int | None]:
    """March along `start + t ray`, then bisect: t of the first surface and its class, or `reach` and None."""
    _, forward, up = layout.axes.T.tolist()
    local = []
    for item in layout.objects:
        half, centre = item.half[:, 0].tolist(), item.centre[:, 0].tolist()
        origin = _times(item.rotation.T, [s - c for s, c in zip(start, centre, strict=True)])
        along = _times(item.rotation.T, ray)
        scaled = [[a / h for a, h in zip(vector, half, strict=True)] for vector in (origin, along)]
        local.append((item.label, *scaled))

    def occupied(t: float) -> int | None:
        for label, (ox, oy, oz), (dx, dy, dz) in local:
            if _inside(SCENE_CLASSES[label], ox + t * dx, oy + t * dy, oz + t * dz):
                return label
        point = [s + t * r for s, r in zip(start, ray, strict=True)]
        below = sum(u * p for u, p in zip(up, point, strict=True)) < -layout.height
        behind = sum(f * p for f, p in zip(forward, point, strict=True)) > layout.wall
        return 0 if below or behind else None

    t = step
    while occupied(t) is None:
        t += step
        if t > reach:
            return reach, None
    low, high = t - step, t
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if occupied(middle) is None else (low, middle)
    return high, occupied(high)
