import pytest
import torch

from framework.preprocessing import pad_around


@pytest.mark.parametrize(("size", "padded", "corner"), [((5, 9), (8, 12), (1, 1)), ((8, 11), (8, 12), (0, 0))])
def test_padding_around_has_the_image_in_the_middle_and_one_colour_about_it(size, padded, corner):
    image, colour = torch.rand(2, 3, *size), torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    got = pad_around(image, 4, colour)
    assert got.shape[-2:] == padded
    inside = torch.zeros(padded, dtype=torch.bool)
    inside[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]] = True
    assert torch.equal(got[:, :, inside], image.flatten(2))
    assert torch.equal(got[:, :, ~inside], colour[..., 0].expand(2, 3, int((~inside).sum())))


def test_padding_around_leaves_what_divides_alone():
    image = torch.rand(1, 3, 8, 12)
    assert pad_around(image, 4, torch.zeros(3, 1, 1)) is image
