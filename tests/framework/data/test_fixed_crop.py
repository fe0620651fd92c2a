import pytest
import torch
from torchvision import tv_tensors

from framework.data.classification import CentreCrop
from framework.data.transforms import DepthMap
from framework.data.window import FixedCrop


def test_a_window_is_cut_out_of_image_and_depth_alike_and_scaled_with_them():
    crop = FixedCrop((45, 472), (43, 608), (480, 640))
    rows, columns = torch.meshgrid(torch.arange(480), torch.arange(640), indexing="ij")
    places = 1000 * rows + columns
    sample = crop({"image": tv_tensors.Image(places[None]), "depth": DepthMap(places.float())})
    assert torch.equal(sample["image"][0], places[45:472, 43:608])
    assert torch.equal(sample["depth"], places[45:472, 43:608].float())
    assert crop(tv_tensors.Image(torch.zeros(3, 240, 320))).shape == (3, 214, 282)  # 22.5 to 236, 21.5 to 304
    with pytest.raises(ValueError, match="inside its image"):
        FixedCrop((45, 481), (43, 608), (480, 640))


def test_evaluation_is_bicubic_where_asked_for():
    image = tv_tensors.Image(torch.randint(0, 256, (3, 256, 256), dtype=torch.uint8))
    sample = {"image": image, "original_size": (256, 256)}
    found = [CentreCrop(None, (112, 112), 0.875, kind)(sample)["image"] for kind in ("bilinear", "bicubic")]
    expected = torch.nn.functional.interpolate(
        image[None, :, 16:240, 16:240].float(), (112, 112), mode="bicubic", antialias=True
    )
    bilinear, bicubic = ((each.float() - expected[0].clamp(0, 255)).abs().mean() for each in found)
    assert bicubic < 1 < 4 < bilinear  # integers are rounded after each direction
