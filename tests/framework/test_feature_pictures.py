"""Pictures of patch features against scikit-learn, NumPy and loops."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from framework.tracking.colour_scale import BAR, colour_table
from framework.tracking.drawing import INK, PAPER
from framework.tracking.features import (
    DARK,
    HEAT,
    block_size,
    component_colours,
    enlarge,
    find_foreground,
    heat,
    heat_bar,
    mark_cell,
    overlay_heat,
    principal_components,
    similarity_matrix,
    similarity_to,
)


def random_map(height, width, channels=12, seed=0):
    """Features whose channels vary by different amounts, and are not centred."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(0.2, 3, channels)[:, None, None]
    return 1 + spread * torch.randn(channels, height, width, generator=generator)


@pytest.mark.parametrize("patches", [60, 7])  # more and fewer than channels
def test_components_are_those_of_scikit_learn(patches):
    features = random_map(1, patches)[:, 0].T
    ours, theirs = principal_components(features).numpy(), PCA(3, svd_solver="full").fit_transform(features.double())
    signs = np.sign((ours * theirs).sum(0))
    assert ours == pytest.approx(signs * theirs, abs=1e-9)


def test_signs_of_components_follow_a_rule():
    features = random_map(1, 60)[:, 0].T.double().numpy()
    centred = features - features.mean(0)
    _, _, directions = np.linalg.svd(centred)
    for index in range(3):
        direction = directions[index] * np.sign(directions[index][np.abs(directions[index]).argmax()])
        for rows in (features, features[::-1].copy()):
            found = principal_components(torch.from_numpy(rows))[:, index].numpy()
            assert found == pytest.approx((rows - features.mean(0)) @ direction, abs=1e-9)


def test_colours_spread_each_component_over_its_channel_but_for_the_tails():
    features = random_map(20, 30)
    components = principal_components(features.flatten(1).T).numpy()
    low, high = np.percentile(components, [1, 99], axis=0)
    expected = np.rint(255 * np.clip((components - low) / (high - low), 0, 1)).reshape(20, 30, 3)
    assert np.array_equal(component_colours([features])[0], expected)


def test_images_shown_together_have_comparable_colours():
    one, other = random_map(9, 12), random_map(7, 5, seed=1)
    other[:, 3, 2] = one[:, 4, 6]
    first, second = component_colours([one, other])
    assert (first.shape, second.shape) == ((9, 12, 3), (7, 5, 3))
    assert np.array_equal(first[4, 6], second[3, 2])


def test_features_that_do_not_vary_have_one_colour():
    for features in (torch.ones(8, 5, 6), torch.ones(2, 5, 6), torch.ones(8, 1, 1)):
        for foreground in (False, True):
            assert len(np.unique(component_colours([features], foreground)[0].reshape(-1, 3), axis=0)) == 1


def test_rounding_is_not_shown_as_a_component():
    along = torch.linspace(0.1, 0.9, 30).reshape(5, 6)
    colours = component_colours([torch.stack([0.3 * along, 0.7 * along, 0.1 + along])])[0]
    assert len(np.unique(colours[..., 0])) > 20
    assert not colours[..., 1:].any()


@pytest.mark.parametrize("sign", [1, -1])
def test_the_foreground_is_what_the_borders_are_not(sign):
    maps, truth = [random_map(12, 16) / 10, random_map(10, 10, seed=1) / 10], []
    for features, (top, left) in zip(maps, ((3, 5), (4, 0)), strict=True):
        inside = np.zeros(features.shape[1:], bool)
        inside[top : top + 5, left : left + 4] = True
        features[:, torch.from_numpy(inside)] += sign * torch.linspace(2, 5, 12)[:, None]
        truth.append(inside)
    for found, inside in zip(find_foreground(maps), truth, strict=True):
        assert np.array_equal(found, inside)
    colours = component_colours(maps, foreground=True)
    patches = torch.cat(
        [features[:, torch.from_numpy(inside)] for features, inside in zip(maps, truth, strict=True)], 1
    )
    alone = component_colours([patches[:, None]])[0][0]  # as if there were nothing else
    assert np.array_equal(np.concatenate([part[inside] for part, inside in zip(colours, truth, strict=True)]), alone)
    for part, inside in zip(colours, truth, strict=True):
        assert (part[~inside] == DARK).all()


def test_similarity_is_the_cosine_to_a_patch_of_the_first_image():
    maps = [random_map(5, 6), random_map(4, 3, seed=1)]
    maps[1][:, 0, 0] = 0
    found = similarity_to(maps, (2, 4))
    chosen = maps[0][:, 2, 4].numpy()
    for features, similarity in zip(maps, found, strict=True):
        for row, column in np.ndindex(similarity.shape):
            other = features[:, row, column].numpy()
            cosine = chosen @ other / max(1e-12, np.linalg.norm(chosen) * np.linalg.norm(other))
            assert similarity[row, column] == pytest.approx(cosine, abs=1e-6)
    assert found[0][2, 4] == pytest.approx(1)


def test_the_matrix_has_all_patches_row_by_row():
    features = random_map(4, 5)
    matrix = similarity_matrix(features)
    assert matrix.shape == (20, 20)
    for row, column in ((0, 0), (2, 3)):
        assert matrix[5 * row + column].reshape(4, 5) == pytest.approx(
            similarity_to([features], (row, column))[0], abs=1e-6
        )


def test_a_large_matrix_has_the_means_of_blocks():
    features = random_map(5, 7)
    assert [block_size((5, 7), most) for most in (35, 34, 12, 11, 1)] == [1, 2, 2, 3, 7]
    found, full = similarity_matrix(features, most=12), similarity_matrix(features).reshape(5, 7, 5, 7)
    assert found.shape == (12, 12)
    blocks = [(slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2)) for row, column in np.ndindex(3, 4)]
    for one, other in np.ndindex(12, 12):
        assert found[one, other] == pytest.approx(full[(*blocks[one], *blocks[other])].mean(), abs=1e-6)


def test_heat_is_light_where_things_are_alike():
    table = colour_table(HEAT)
    assert np.array_equal(heat(np.array([[-0.5, 0.0, 1.0]]))[0], table[[0, 0, 255]])
    assert np.array_equal(heat(np.array([[0.6, 0.8, 1.0]]), (0.6, 1.0))[0], table[[0, 128, 255]])
    assert table[0].sum() < table[255].sum()
    bar = heat_bar((0.6, 1.0))
    ticks = np.flatnonzero((bar[BAR] == INK).all(-1))
    assert len(ticks) == 3
    assert np.array_equal(bar[0, ticks[[0, 2]]], table[[0, 255]])


def test_heat_lies_over_a_grey_image_cell_by_cell():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    cells = np.random.default_rng(1).random((2, 3))
    assert np.array_equal(overlay_heat(image, cells, alpha=1), np.kron(heat(cells), np.ones((10, 10, 1), np.uint8)))
    plain = overlay_heat(image, cells, alpha=0)
    assert np.array_equal(plain, np.rint(image.mean(-1, keepdims=True)).repeat(3, -1))
    assert np.array_equal(enlarge(heat(cells), (20, 30)), overlay_heat(image, cells, alpha=1))


def test_a_frame_lies_about_its_cell():
    image = np.full((60, 90, 3), 120, np.uint8)
    marked = mark_cell(image, (1, 2), (3, 3))
    assert (marked[20:40, 60:90] == 120).all()  # the cell itself can be seen
    assert (marked[19, 60:90] == PAPER).all()
    assert (marked[18, 60:90] == INK).all()
    assert (marked[:18] == 120).all()
    assert (image == 120).all()
