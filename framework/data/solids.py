"""Canonical solids inside [-1, 1]^3 with their axis along z, and their exact intersections with rays."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.intp]
Triple = tuple[float, float, float]

CLEAR = 1e-9  # a hit nearer than this is the surface that the ray starts from


def dot(left: Array, right: Array) -> Array:
    """Return the scalar products (N,) of vectors (3, N)."""
    product: Array = left[0] * right[0] + left[1] * right[1] + left[2] * right[2]
    return product


def unit(vectors: Array) -> Array:
    """Scale vectors (3, N) to length 1."""
    return vectors / np.sqrt(dot(vectors, vectors))


def turn(matrix: Array, vectors: Array) -> Array:
    """Multiply a (3, 3) matrix with vectors (3, N), without BLAS: the same bits for any N and number of threads."""
    product: Array = matrix[:, :1] * vectors[0] + matrix[:, 1:2] * vectors[1] + matrix[:, 2:] * vectors[2]
    return product


@dataclass(frozen=True, slots=True)
class Revolution:
    """The solid x^2 + y^2 <= a z^2 + b z + c, |z| <= 1, less a hole along its axis.

    Args:
        half: Mean half extents in units of an object's size, chosen so that all classes look about equally large.
        stretch: How far the proportions vary (log scale).
        taper: It can lie on the plane y + taper z = 1 - taper.
        profile: The coefficients a, b, c.
        hole: Squared radius of the hole, 0 for none.
    """

    half: Triple
    stretch: float
    taper: float
    profile: Triple
    hole: float = 0.0

    @property
    def sheets(self) -> list[Triple]:
        """Return the coefficients of the quadrics that bound it sideways: the outside, then the hole."""
        return [self.profile, (0.0, 0.0, self.hole)][: 2 if self.hole else 1]

    def hit(self, origin: Array, ray: Array) -> tuple[Array, Index]:
        """Intersect rays (3, N): the parameter of the first hit (N,), inf for none, and the face hit (N,)."""
        (ox, oy, oz), (dx, dy, dz) = origin, ray
        times = []
        for a, b, c in self.sheets:
            qa = dx * dx + dy * dy - a * dz * dz
            qb = ox * dx + oy * dy - (a * oz + b / 2) * dz
            qc = ox * ox + oy * oy - ((a * oz + b) * oz + c)
            q = -(qb + np.copysign(np.sqrt(qb * qb - qa * qc), qb))  # no cancellation: Numerical Recipes, section 5.6
            times += [np.where(np.abs(oz + t * dz) <= 1, t, np.inf) for t in (q / qa, qc / q)]
        a, b, c = self.profile
        for z in (-1.0, 1.0):
            t = (z - oz) / dz
            r2 = (ox + t * dx) ** 2 + (oy + t * dy) ** 2
            times.append(np.where((r2 >= self.hole) & (r2 <= a + b * z + c), t, np.inf))
        found = np.stack(times)
        found[~(found > CLEAR)] = np.inf  # behind the origin; NaN where there is no root
        return found.min(axis=0), found.argmin(axis=0)

    def normal(self, point: Array, face: Index) -> Array:
        """Return outward normals (3, N), of any length, at points (3, N) of the given faces."""
        x, y, z = point
        sheets = np.array(self.sheets)
        side = np.minimum(face // 2, len(sheets) - 1)
        sign = np.where(side == 1, -1.0, 1.0)
        normal = np.stack([x * sign, y * sign, -(sheets[side, 0] * z + sheets[side, 1] / 2) * sign])
        cap = face >= 2 * len(sheets)
        normal[:2, cap] = 0
        normal[2, cap] = z[cap]
        return normal


@dataclass(frozen=True, slots=True)
class Polyhedron:
    """The convex solid n . p <= d, one row (n, d) per face; the other arguments are those of `Revolution`."""

    half: Triple
    stretch: float
    taper: float
    faces: tuple[tuple[float, float, float, float], ...]

    def hit(self, origin: Array, ray: Array) -> tuple[Array, Index]:
        """Intersect rays (3, N) from outside: the parameter of the hit (N,), inf for none, and the face hit (N,)."""
        (ox, oy, oz), (dx, dy, dz) = origin, ray
        towards = np.stack([a * dx + b * dy + c * dz for a, b, c, _ in self.faces])
        times = np.stack([d - (a * ox + b * oy + c * oz) for a, b, c, d in self.faces]) / towards
        into = np.where(towards < 0, times, -np.inf)
        out = np.where(towards < 0, np.inf, times)
        near = into.max(axis=0)
        return np.where((near < out.min(axis=0)) & (near > CLEAR), near, np.inf), into.argmax(axis=0)

    def normal(self, point: Array, face: Index) -> Array:
        """Return outward normals (3, N) at points (3, N) of the given faces."""
        return np.array(self.faces)[face, :3].T


SOLIDS: dict[str, Revolution | Polyhedron] = {
    "sphere": Revolution((1.0, 1.0, 1.0), 0.0, 0.0, profile=(-1.0, 0.0, 1.0)),
    "cylinder": Revolution((0.75, 0.75, 0.9), 0.25, 0.0, profile=(0.0, 0.0, 1.0)),
    "cone": Revolution((1.0, 1.0, 1.2), 0.2, 0.5, profile=(0.25, -0.5, 0.25)),
    "ring": Revolution((1.1, 1.1, 0.4), 0.15, 0.0, profile=(0.0, 0.0, 1.0), hole=0.4),
    "box": Polyhedron(
        (0.78, 0.68, 0.73),
        0.25,
        0.0,
        faces=((1, 0, 0, 1), (-1, 0, 0, 1), (0, 1, 0, 1), (0, -1, 0, 1), (0, 0, 1, 1), (0, 0, -1, 1)),
    ),
    "pyramid": Polyhedron(
        (0.92, 0.92, 1.06),
        0.2,
        0.5,
        faces=((0, 0, -1, 1), (1, 0, 0.5, 0.5), (-1, 0, 0.5, 0.5), (0, 1, 0.5, 0.5), (0, -1, 0.5, 0.5)),
    ),
}
