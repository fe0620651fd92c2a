"""Point clouds, read back by a reader of their own and held against the geometry of a pinhole camera."""

import struct

import numpy as np
import pytest
import torch

from framework.errors import ConfigError
from framework.tracking.point_cloud import point_cloud, scale_intrinsics, write_ply

CAMERA = np.array([[50.0, 0, 7.2], [0, 40.0, 4.9], [0, 0, 1]])
SIZES = {"float": ("<f", 4), "uchar": ("<B", 1)}


def read_ply(content):
    """Return the properties of every vertex, value by value."""
    head, _, body = content.partition(b"end_header\n")
    lines = head.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    count = next(int(line.split()[2]) for line in lines if line.startswith("element vertex"))
    properties = [line.split()[1:] for line in lines if line.startswith("property")]
    vertices, at = [], 0
    for _ in range(count):
        vertex = {}
        for kind, name in properties:
            code, size = SIZES[kind]
            vertex[name] = struct.unpack_from(code, body, at)[0]
            at += size
        vertices.append(vertex)
    assert at == len(body)
    return vertices


@pytest.fixture
def scene():
    rng = np.random.default_rng(0)
    return rng.uniform(0.5, 9, (10, 15)), rng.integers(0, 256, (10, 15, 3), dtype=np.uint8)


@pytest.mark.parametrize("skew", [0.0, 3.0])
def test_points_are_seen_where_their_pixels_are(scene, tmp_path, skew):
    depth, image = scene
    depth[0, 0], depth[3, 4], depth[5, 6], depth[9, 14] = 0, np.nan, np.inf, -2
    camera = CAMERA + np.array([[0, skew, 0], [0, 0, 0], [0, 0, 0]])
    assert write_ply(tmp_path / "scene.ply", torch.from_numpy(depth), image, torch.from_numpy(camera)) == 146
    vertices = read_ply((tmp_path / "scene.ply").read_bytes())
    pixels = [(row, column) for row in range(10) for column in range(15) if 0 < depth[row, column] < np.inf]
    for (row, column), vertex in zip(pixels, vertices, strict=True):
        seen = camera @ [vertex["x"], vertex["y"], vertex["z"]]
        assert seen / seen[2] == pytest.approx([column, row, 1], abs=1e-4)
        assert vertex["z"] == pytest.approx(depth[row, column])  # metres along the optical axis
        assert (vertex["red"], vertex["green"], vertex["blue"]) == tuple(image[row, column])


def test_x_is_right_y_is_down_and_the_file_says_so(scene):
    depth, image = scene
    content = point_cloud(depth, image, CAMERA)
    vertices = read_ply(content)
    assert vertices[0]["x"] < 0 < vertices[14]["x"]
    assert vertices[0]["y"] < 0 < vertices[-1]["y"]
    assert b"comment metres in the camera's axes: x right, y down, z forward\n" in content


def test_a_map_without_depth_is_an_empty_cloud(scene):
    assert read_ply(point_cloud(np.zeros((10, 15)), scene[1], CAMERA)) == []


def test_a_resized_picture_shows_the_same_directions():
    scaled = scale_intrinsics(CAMERA, (10, 15), (25, 60))
    for share in (0.0, 0.3, 1.0):  # of the width and the height, from border to border
        old = np.linalg.solve(CAMERA, [15 * share - 0.5, 10 * share - 0.5, 1])
        assert np.linalg.solve(scaled, [60 * share - 0.5, 25 * share - 0.5, 1]) == pytest.approx(old)
    assert scale_intrinsics(scaled, (25, 60), (10, 15)) == pytest.approx(CAMERA)
    assert scale_intrinsics(CAMERA, (10, 15), (10, 15)) == pytest.approx(CAMERA)


@pytest.mark.parametrize(
    "wrong",
    [np.eye(4), np.diag([0, 50.0, 1]), np.diag([50.0, -50, 1]), CAMERA.T, np.where(CAMERA == 50, np.nan, CAMERA)],
)
def test_intrinsics_of_no_camera_are_refused(scene, wrong):
    with pytest.raises(ConfigError, match=r"\[\[fx, 0, cx\], \[0, fy, cy\], \[0, 0, 1\]\]"):
        point_cloud(*scene, wrong)
    with pytest.raises(ConfigError):
        scale_intrinsics(wrong, (10, 15), (20, 30))


def test_sizes_that_differ_are_named(scene):
    with pytest.raises(ValueError, match=r"\(9, 15\), \(10, 15, 3\)"):
        point_cloud(scene[0][1:], scene[1], CAMERA)
