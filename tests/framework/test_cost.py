"""What networks cost, against sums by hand and against independent ways of counting."""

import pytest
import torch
from torch import nn

from framework.cost import activation_bytes, flop_count, parameter_count, receptive_field


def chain(layers, **options):
    """A chain of convolutions with one channel each: (kernel, stride, dilation)."""
    return nn.Sequential(*(nn.Conv2d(1, 1, k, s, d * (k - 1) // 2, d, **options) for k, s, d in layers))


def recurrence(layers):
    """The closed form: each layer adds its extent, in steps of the strides before it."""
    field, jump = 1, 1
    for kernel, stride, dilation in layers:
        field += dilation * (kernel - 1) * jump
        jump *= stride
    return field, jump


class Gate(nn.Module):
    """Squeeze-and-excitation: every cell is scaled by the mean of all."""

    def forward(self, x):
        return x * x.mean((2, 3), keepdim=True).sigmoid()


class TestReceptiveField:
    @pytest.mark.parametrize(
        "layers",
        [
            [(1, 1, 1)],
            [(3, 1, 1)] * 4,
            [(7, 2, 1), (3, 2, 1), (3, 1, 1), (3, 2, 1), (5, 1, 1)],
            [(3, 1, 1), (3, 1, 2), (3, 1, 4)],
            [(4, 4, 1), (7, 1, 1), (2, 2, 1), (7, 1, 1)],
        ],
    )
    def test_follows_the_recurrence(self, layers):
        field, stride = recurrence(layers)
        assert receptive_field(chain(layers), stride, in_channels=1) == field

    @pytest.mark.parametrize(("first", "field"), [(True, 427), (False, 483)])
    def test_resnet50_with_the_stride_in_the_first_or_in_the_last_block_of_a_stage(self, first, field):
        """Distill 2019 has 483 for TF-Slim's resnet_v1_50, which halves at the end of a stage; torchvision does not."""
        layers = [(7, 2, 1), (3, 2, 1)]
        for stage, blocks in enumerate((3, 4, 6, 3)):
            strides = [1] * blocks
            if first and stage > 0:
                strides[0] = 2
            if not first and stage < 3:
                strides[-1] = 2
            layers += [(3, stride, 1) for stride in strides]
        assert receptive_field(chain(layers), 32, in_channels=1) == field == recurrence(layers)[0]

    def test_equals_nan_that_spreads_through_the_real_layers(self):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 5, 2, 2),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, padding="same", groups=4),
            nn.GELU(),
            nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(8, 4, (3, 1), padding=(1, 0), dilation=1),
            nn.AvgPool2d(2),
        ).eval()
        middle, touched = 64, []
        for column in range(128):
            images = torch.zeros(1, 3, 8, 128)
            images[..., column] = torch.nan
            with torch.no_grad():
                cells = net(images)
            touched.append(bool(cells[0, :, 0, middle // 8].isnan().any()))
        assert (
            receptive_field(net, 8)
            == sum(touched)
            == 1 + max(i for i, t in enumerate(touched) if t) - touched.index(True)
        )

    def test_shifted_channels_count(self):
        class Shift(nn.Module):
            def forward(self, x):
                return torch.cat([x[:, :1].roll(3, -1), x[:, 1:].roll(-1, -1)], 1)

        assert receptive_field(nn.Sequential(nn.Conv2d(3, 2, 1), Shift()), 1) == 5  # 3 to the left, 1 to the right

    def test_the_whole_image(self):
        assert receptive_field(nn.Sequential(chain([(3, 2, 1)]), Gate()), 2, in_channels=1) is None

    def test_wider_than_the_first_strip(self):
        layers = [(3, 2, 1)] * 5 + [(3, 1, 1)] * 12
        assert receptive_field(chain(layers), 32, in_channels=1) == recurrence(layers)[0] == 831


class TestActivations:
    def test_by_hand(self):
        net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 64, 5))
        images, maps = 3 * 8 * 8, 4 * 8 * 8  # the maps serve both ReLU and the linear layer
        assert activation_bytes(net, torch.rand(2, 3, 8, 8)) == 2 * 4 * (images + maps)

    def test_attention_keeps_no_matrix_of_weights(self):
        class Attention(nn.Module):
            def forward(self, x):
                return nn.functional.scaled_dot_product_attention(x, x, x)

        x = torch.rand(1, 2, 50, 8, requires_grad=True)
        kept = activation_bytes(Attention(), x)
        assert kept == activation_bytes(Attention(), torch.empty_like(x, device="meta", requires_grad=True))
        assert kept < 4 * 2 * 50 * 50

    def test_the_meta_device_says_what_the_cpu_says(self):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5))
        kept = activation_bytes(net, torch.rand(2, 3, 16, 16))
        assert kept == activation_bytes(net.to("meta"), torch.empty(2, 3, 16, 16, device="meta"))

    def test_the_mode_stays(self):
        net = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
        activation_bytes(net, torch.rand(1, 3, 8, 8))
        assert not net.training


def test_parameters_and_operations_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, groups=1), nn.Flatten(), nn.Linear(4 * 3 * 3, 5))
    assert parameter_count(net) == (27 + 1) * 4 + (36 + 1) * 5
    assert flop_count(net, torch.zeros(1, 3, 8, 8)) == 2 * (27 * 4 * 9 + 36 * 5)
