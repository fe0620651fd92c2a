"""The rendered scenes: what they claim about their pixels is true, and the same on every run and at every size."""

from dataclasses import fields, replace

import numpy as np
import pytest

from framework.data import scenes
from framework.data.scene_layout import draw_layout
from framework.data.scenes import SCENE_CLASSES, Scene, render_scene
from framework.errors import ConfigError
from tests.reference.raycaster import cast

SHAPES = len(SCENE_CLASSES) - 1


@pytest.fixture(scope="module")
def series() -> list[Scene]:
    return [render_scene(5, index, (64, 64)) for index in range(200)]


def same(left: Scene, right: Scene) -> bool:
    return all(np.array_equal(getattr(left, f.name), getattr(right, f.name)) for f in fields(Scene))


def rays(scene: Scene) -> np.ndarray:
    """(H, W, 3) directions with z = 1, from the intrinsics alone."""
    height, width = scene.mask.shape
    pixels = np.dstack([*np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), np.ones((height, width))])
    return pixels @ np.linalg.inv(scene.intrinsics).T


def alone(layout, item, monkeypatch, size) -> Scene:
    """Render one object of a layout without the others."""
    with monkeypatch.context() as patch:
        patch.setattr(scenes, "draw_layout", lambda *_: replace(layout, objects=(item,)))
        return render_scene(0, 0, size, min_pixels=1)


def test_same_arguments_give_the_same_bits_in_any_order(series):
    again = render_scene(5, 17, (64, 64))
    assert same(series[17], again)
    assert same(series[17], render_scene(np.int64(5), np.int64(17), (64, 64)))


def test_another_index_or_seed_is_another_scene(series):
    images = {scene.image.tobytes() for scene in series}
    assert len(images) == len(series)
    assert not same(series[17], render_scene(6, 17, (64, 64)))


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (90, 35), (1, 1)])
def test_shapes_types_and_ranges(size):
    scene = render_scene(0, 3, size)
    assert (scene.image.shape, scene.image.dtype) == ((*size, 3), np.uint8)
    assert (scene.mask.shape, scene.mask.dtype) == (size, np.uint8)
    assert (scene.instances.shape, scene.instances.dtype) == (size, np.uint8)
    assert (scene.depth.shape, scene.depth.dtype) == (size, np.float32)
    assert (scene.boxes.dtype, scene.boxes.shape) == (np.float32, (len(scene.labels), 4))
    assert scene.labels.dtype == np.int64
    assert (scene.depth > 0.5).all()
    assert (scene.depth < 15).all()
    assert scene.mask.max() <= SHAPES


def test_boxes_are_tight_around_the_visible_pixels():
    for index in range(20):
        scene = render_scene(1, index, (60, 84))
        assert scene.instances.max() == len(scene.boxes)
        for number, box in enumerate(scene.boxes, start=1):
            pixels = [(x, y) for y in range(60) for x in range(84) if scene.instances[y, x] == number]
            xs, ys = zip(*pixels, strict=True)
            assert box.tolist() == [min(xs), min(ys), max(xs) + 1, max(ys) + 1]


def test_mask_instances_labels_and_image_label_agree(series):
    for scene in series:
        areas = np.bincount(scene.instances.ravel(), minlength=len(scene.labels) + 1)[1:]
        assert (areas >= 12).all()
        listed = scene.instances > 0
        assert (scene.mask[listed] == scene.labels[scene.instances[listed].astype(int) - 1]).all()
        assert scene.label == scene.labels[areas.argmax()]


def test_objects_of_few_pixels_are_not_listed_but_stay_in_mask_and_depth():
    every, some = render_scene(1, 4, (64, 64), min_pixels=1), render_scene(1, 4, (64, 64), min_pixels=100)
    assert 0 < len(some.labels) < len(every.labels)
    assert np.array_equal(every.mask, some.mask)
    assert np.array_equal(every.depth, some.depth)
    assert (some.mask[some.instances == 0] > 0).any()
    nothing = render_scene(1, 4, (64, 64), min_pixels=64 * 64)
    assert nothing.boxes.shape == (0, 4)
    assert nothing.label == 0


def test_depth_of_spheres_ground_and_wall_satisfies_their_equations():
    spheres = grounds = walls = 0
    for index in range(12):
        scene, layout = render_scene(2, index, (72, 96)), draw_layout(2, index)
        points = rays(scene) * scene.depth[..., None].astype(np.float64)
        _, forward, up = layout.axes.T
        ground = np.abs(points @ up + layout.height) < 1e-5
        wall = np.abs(points @ forward - layout.wall) < 1e-5
        grounds, walls = grounds + ground.sum(), walls + wall.sum()
        assert ((ground | wall) | (scene.mask > 0)).all()
        centres = [(o.centre[:, 0], o.half[0, 0]) for o in layout.objects if SCENE_CLASSES[o.label] == "sphere"]
        for point in points[scene.mask == SCENE_CLASSES.index("sphere")]:
            assert min(abs(np.linalg.norm(point - centre) - radius) for centre, radius in centres) < 1e-5
            spheres += 1
    assert min(spheres, grounds, walls) > 500


def test_depth_and_class_match_the_reference_ray_caster():
    seen = set()
    for index in range(4):
        scene, layout = render_scene(3, index, (40, 52)), draw_layout(3, index)
        directions, draw = rays(scene), np.random.default_rng(index)
        for label in np.unique(scene.mask):
            ys, xs = np.nonzero(scene.mask == label)
            for k in draw.integers(len(ys), size=3):
                depth, found = cast(layout, [0.0, 0.0, 0.0], directions[ys[k], xs[k]].tolist())
                assert found == label
                assert scene.depth[ys[k], xs[k]] == pytest.approx(depth, abs=1e-5)
            seen.add(int(label))
    assert seen == set(range(len(SCENE_CLASSES)))


def test_the_nearest_surface_wins(monkeypatch):
    occluded = 0
    for index in range(8):
        layout, whole = draw_layout(4, index, (6, 6)), render_scene(4, index, (48, 48), objects=(6, 6))
        parts = [alone(layout, item, monkeypatch, (48, 48)) for item in layout.objects]
        depths = np.stack([part.depth for part in parts])
        assert np.array_equal(whole.depth, depths.min(axis=0))
        nearest = np.take_along_axis(np.stack([part.mask for part in parts]), depths.argmin(axis=0)[None], 0)[0]
        assert np.array_equal(whole.mask, nearest)
        occluded += (np.stack([part.mask > 0 for part in parts]).sum(axis=0) > 1).sum()
    assert occluded > 100


def test_ground_is_as_bright_as_lambert_and_the_lamp_say(monkeypatch):
    lit = dark = 0
    for index in range(4):
        layout = draw_layout(9, index)
        layout = replace(layout, ground=replace(layout.ground, colours=np.ones((2, 3))))
        with monkeypatch.context() as patch:
            patch.setattr(scenes, "draw_layout", lambda *_, layout=layout: layout)
            scene = render_scene(9, index, (120, 120))
        up, light, directions = layout.axes[:, 2], layout.light[:, 0], rays(scene)
        for y in range(61, 119, 4):
            for x in range(2, 119, 4):
                around = np.s_[y - 1 : y + 2, x - 1 : x + 2]
                point = directions[y, x] * scene.depth[y, x]
                if (scene.mask[around] > 0).any() or abs(point @ up + layout.height) > 1e-5:
                    continue
                _, blocked = cast(layout, (point + 1e-3 * up).tolist(), light.tolist(), step=0.02, reach=4.0)
                want = 255 * np.sqrt(0.35 + 0.65 * (up @ light if blocked is None else 0))
                if np.ptp(scene.image[around].mean(axis=2)) < 12:  # not at a shadow's edge
                    assert scene.image[y, x].mean() == pytest.approx(want, abs=8)
                    lit, dark = lit + (blocked is None), dark + (blocked is not None)
    assert lit > 300
    assert dark > 10


def test_every_object_rests_on_the_ground():
    for index in range(10):
        layout = draw_layout(7, index)
        for item in layout.objects:
            z = np.linspace(-1, 1, 41)[:, None]
            angle = np.linspace(0, 2 * np.pi, 721)[None]
            match SCENE_CLASSES[item.label]:
                case "sphere":
                    radius = np.sqrt(1 - z**2)
                case "cone" | "pyramid":
                    radius = (1 - z) / 2
                case _:
                    radius = np.ones_like(z)
            x, y = radius * np.cos(angle), radius * np.sin(angle)
            if SCENE_CLASSES[item.label] in ("box", "pyramid"):  # to the square's outline
                longest = np.maximum(abs(np.cos(angle)), abs(np.sin(angle)))
                x, y = x / longest, y / longest
            surface = np.stack([x, y, z + 0 * x]).reshape(3, -1) * item.half
            up = layout.axes[:, 2] @ (item.rotation @ surface + item.centre)
            assert up.min() == pytest.approx(-layout.height, abs=2e-3)


def test_another_size_shows_the_same_content():
    small, large = render_scene(8, 1, (48, 64)), render_scene(8, 1, (144, 192))
    assert np.array_equal(small.mask, large.mask[1::3, 1::3])  # the same rays
    np.testing.assert_allclose(small.depth, large.depth[1::3, 1::3], rtol=1e-6)
    for box, label in zip(small.boxes, small.labels, strict=True):
        distances = np.abs(large.boxes[large.labels == label] / 3 - box).max(axis=1)
        assert distances.min() <= 1


def test_a_wider_image_sees_more_at_its_sides_and_the_same_in_the_middle():
    square, wide = render_scene(8, 2, (64, 64)), render_scene(8, 2, (64, 96))
    assert np.array_equal(square.mask, wide.mask[:, 16:80])
    np.testing.assert_allclose(square.depth, wide.depth[:, 16:80], rtol=1e-6)


def test_classes_are_balanced_and_every_scene_shows_something(series):
    objects = np.bincount(np.concatenate([scene.labels for scene in series]), minlength=SHAPES + 1)[1:]
    assert objects.min() > 0.75 * objects.mean()
    assert objects.max() < 1.25 * objects.mean()
    images = np.bincount([scene.label for scene in series], minlength=SHAPES + 1)
    assert images[0] == 0
    assert images[1:].min() > 0.6 * images[1:].mean()
    assert all(1 <= len(scene.labels) <= 7 for scene in series)


def test_colour_does_not_give_the_class_away(series):
    means, labels = [], []
    for scene in series:
        for number, label in enumerate(scene.labels, start=1):
            means.append(scene.image[scene.instances == number].mean(axis=0))
            labels.append(label)
    colours, classes = np.array(means), np.array(labels)
    half = len(classes) // 2
    distance = np.linalg.norm(colours[half:, None] - colours[None, :half], axis=2)
    guessed = classes[:half][distance.argmin(axis=1)]
    assert (guessed == classes[half:]).mean() < 2 / SHAPES  # nearest neighbour by mean colour; chance is 1 / SHAPES


def test_number_of_objects_is_as_asked():
    assert render_scene(0, 0, (64, 64), objects=(0, 0)).mask.max() == 0
    assert [len(draw_layout(0, index, (2, 2)).objects) for index in range(5)] == [2] * 5
    assert {len(draw_layout(0, index, (1, 3)).objects) for index in range(40)} == {1, 2, 3}


@pytest.mark.parametrize("objects", [(3, 2), (-1, 2), (0, 256)])
def test_an_impossible_number_of_objects_is_refused(objects):
    with pytest.raises(ConfigError, match="least, most"):
        render_scene(0, 0, (32, 32), objects=objects)


def test_an_empty_image_is_refused():
    with pytest.raises(ConfigError, match="at least 1x1"):
        render_scene(0, 0, (0, 32))
