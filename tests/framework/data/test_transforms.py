import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from framework.data.transforms import DepthMap, Photometric, RandomScaleCrop, fill_masks


def pair(height=40, width=60):
    """An image whose red channel is its mask, times ten."""
    mask = (torch.arange(height)[:, None] // 10 + torch.arange(width)[None] // 15).to(torch.uint8)
    image = torch.stack([mask * 10, mask, mask])
    return tv_tensors.Image(image), tv_tensors.Mask(mask)


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.4, 0.4), (2.0, 2.0), (0.5, 2.0)])
def test_image_and_mask_are_cut_alike(scale):
    transform = RandomScaleCrop((32, 24), scale)
    fill_masks([transform], 255)
    for _ in range(5):
        image, mask = transform(*pair())
        assert image.shape == (3, 32, 24)
        assert mask.shape == (32, 24)
        kept = mask != 255
        agree = (image[0].float() / 10 - mask.float()).abs() <= 0.5
        assert agree[kept].float().mean() > 0.7  # they differ along edges, where the image is interpolated


def test_at_scale_one_pixels_are_copied():
    image, mask = RandomScaleCrop((16, 16), (1.0, 1.0))(*pair())
    assert torch.equal(image[1], mask)


def test_what_lies_outside_is_ignored_in_masks_and_unknown_in_depth():
    transform = RandomScaleCrop((80, 80), (1.0, 1.0))
    fill_masks([transform], 255)
    image, mask, depth = transform(*pair(), DepthMap(torch.ones(40, 60)))
    outside = mask == 255
    assert int(outside.sum()) == 80 * 80 - 40 * 60
    assert image[:, outside].eq(0).all()
    assert depth[outside].eq(0).all()
    assert depth[~outside].eq(1).all()


def test_torchvisions_own_rotation_fills_masks_with_the_ignore_index():
    rotation = v2.RandomRotation((45, 45))
    fill_masks([v2.Compose([rotation])], 200)
    _, mask = rotation(*pair())
    assert (mask == 200).any()
    assert mask[0, 0] == 200


def reference_photometric(image, brightness, contrast, saturation):
    """One image (H, W, 3) in [0, 1], in float64."""
    image = image * brightness
    luminance = image @ np.array([0.299, 0.587, 0.114])
    image = luminance.mean() + contrast * (image - luminance.mean())
    luminance = (image @ np.array([0.299, 0.587, 0.114]))[..., None]
    return (luminance + saturation * (image - luminance)).clip(0, 1)


def test_photometric_against_a_reference_and_independent_of_the_batch():
    images = torch.randint(0, 256, (3, 3, 8, 9), dtype=torch.uint8)
    factors = torch.tensor([[1.1, 0.8, 1.2], [0.9, 1.2, 0.8], [1.0, 1.0, 1.0]])
    changed = Photometric.apply(images, factors)
    for image, factor, got in zip(images, factors, changed, strict=True):
        expected = reference_photometric(image.permute(1, 2, 0).double().numpy() / 255, *factor.double().tolist())
        assert np.allclose(got.permute(1, 2, 0).numpy(), expected, atol=1e-5)
    assert torch.equal(Photometric.apply(images[1:2], factors[1:2])[0], changed[1])
    assert torch.allclose(changed[2], images[2] / 255, atol=1e-6)


def test_photometric_takes_two_channels():
    images = torch.rand(2, 2, 8, 8)
    assert torch.allclose(Photometric.apply(images, torch.ones(2, 3)), images, atol=1e-6)
