"""The behaviour that every backbone inherits: normalisation, sizes, freezing and the probe."""

import copy

import pytest
import torch
from torch import Tensor, nn

from framework.backbone import Backbone, Features, Level

LEVELS = (Level(4, 2), Level(6, 4))


class Pyramid(Backbone):
    """Two stages with batch norm and dropout, and arguments to declare them wrongly."""

    def __init__(self, levels=LEVELS, prefix_tokens: int = 0, in_channels: int = 3, **statistics):
        super().__init__(levels, multiple=4, prefix_tokens=prefix_tokens, in_channels=in_channels, **statistics)
        stem = nn.Sequential(nn.Conv2d(in_channels, 4, 2, 2), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.body = nn.Sequential(stem, nn.Sequential(nn.Conv2d(4, 6, 2, 2), nn.BatchNorm2d(6), nn.Dropout(0.5)))

    def extract(self, images: Tensor) -> Features:
        fine = self.body[0](images)
        return Features([fine, self.body[1](fine)], [])

    def stages(self) -> list[list[nn.Parameter]]:
        return [list(stage.parameters()) for stage in self.body]


class Echo(Backbone):
    """Hands its input on."""

    def __init__(self, **settings):
        super().__init__([Level(3, 1)], **settings)

    def extract(self, images: Tensor) -> Features:
        return Features([images], [])

    def stages(self) -> list[list[nn.Parameter]]:
        return []


def train_steps(backbone: Backbone, optimizer: torch.optim.Optimizer, count: int = 3) -> None:
    for _ in range(count):
        loss = sum(x.square().mean() for x in backbone(torch.rand(4, 3, 8, 8)).maps)
        optimizer.zero_grad()
        if loss.requires_grad:
            loss.backward()
        optimizer.step()


def changed(backbone: Backbone, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in backbone.state_dict().items() if not torch.equal(tensor, before[name])}


class TestNormalisation:
    def test_with_its_own_statistics(self):
        images = torch.rand(2, 3, 4, 4)
        mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
        got = Echo(mean=mean, std=std)(images).maps[0]
        for channel in range(3):
            torch.testing.assert_close(got[:, channel], (images[:, channel] - mean[channel]) / std[channel])

    def test_with_their_average_for_other_channel_counts(self):
        images = torch.rand(2, 5, 4, 4)
        got = Echo(in_channels=5, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))(images).maps[0]
        torch.testing.assert_close(got, (images - 0.2) / 0.6)

    def test_statistics_are_no_weights(self):
        assert not Echo().state_dict()
        assert Echo().double().mean.dtype == torch.float64  # they move with the module all the same

    def test_writes_nothing_into_the_images(self):
        images = torch.rand(1, 3, 8, 8)
        before = images.clone()
        Pyramid()(images)
        assert torch.equal(images, before)


class TestRefusals:
    @pytest.mark.parametrize("size", [(8, 10), (6, 8), (1, 4)])
    def test_sizes(self, size: tuple[int, int]):
        with pytest.raises(ValueError, match=rf"divisible by 4, got {size[0]}x{size[1]}: pad or resize"):
            Pyramid()(torch.rand(2, 3, *size))

    @pytest.mark.parametrize("size", [(4, 4), (8, 4), (12, 20)])
    def test_any_multiple_is_taken(self, size: tuple[int, int]):
        maps = Pyramid()(torch.rand(2, 3, *size)).maps
        assert [tuple(x.shape) for x in maps] == [
            (2, 4, size[0] // 2, size[1] // 2),
            (2, 6, size[0] // 4, size[1] // 4),
        ]

    def test_channels(self):
        with pytest.raises(ValueError, match="built for 3 channels, got 1: set in_channels: 1"):
            Pyramid()(torch.rand(2, 1, 8, 8))

    @pytest.mark.parametrize("stages", [-1, 3])
    def test_stages(self, stages: int):
        with pytest.raises(ValueError, match="has 2 stages, so freeze 0 to 2"):
            Pyramid().freeze(stages)

    def test_a_plugin_without_its_two_methods(self):
        class Half(Pyramid):
            stages = Backbone.stages

        with pytest.raises(TypeError, match="stages"):
            Half()


class TestFreezing:
    def test_frozen_stages_are_bit_equal_after_training_and_the_rest_moves(self):
        backbone = Pyramid()
        optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        train_steps(backbone, optimizer)  # momentum is there that could go on
        backbone.freeze(1)
        before = copy.deepcopy(backbone.state_dict())
        train_steps(backbone, optimizer)
        moved = changed(backbone, before)
        assert moved == {name for name in before if name.startswith("body.1")}  # parameters and statistics

    def test_gradients_from_before_are_not_applied(self):
        backbone = Pyramid()
        optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
        sum(x.square().mean() for x in backbone(torch.rand(4, 3, 8, 8)).maps).backward()
        before = copy.deepcopy(backbone.state_dict())
        backbone.freeze(1)
        optimizer.step()
        assert not [name for name in changed(backbone, before) if name.startswith("body.0")]

    def test_all_frozen_is_constant_and_deterministic_in_training_mode(self):
        backbone = Pyramid()
        optimizer = torch.optim.AdamW(backbone.parameters(), lr=0.1)
        train_steps(backbone, optimizer)
        backbone.freeze()
        before = copy.deepcopy(backbone.state_dict())
        backbone.train()
        train_steps(backbone, optimizer)
        assert not changed(backbone, before)
        images = torch.rand(2, 3, 8, 8)
        first, second = backbone(images), backbone(images)
        assert all(torch.equal(a, b) for a, b in zip(first.maps, second.maps, strict=True))

    def test_all_frozen_builds_no_graph(self):
        backbone = Pyramid()
        saved: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
            backbone.freeze()
            assert not any(x.requires_grad for x in backbone(torch.rand(2, 3, 8, 8, requires_grad=True)).maps)
            assert not saved
            backbone.freeze(1)
            assert all(x.requires_grad is (i == 1) for i, x in enumerate(backbone(torch.rand(2, 3, 8, 8)).maps))
            assert saved

    def test_all_frozen_may_be_trained_upon(self):
        backbone, head = Pyramid(), nn.Conv2d(6, 1, 1)
        backbone.freeze()
        head(backbone(torch.rand(2, 3, 8, 8)).maps[-1]).sum().backward()  # inference tensors could not be saved
        assert head.weight.grad is not None

    def test_flags_say_what_is_frozen(self):
        backbone = Pyramid()
        for stages, frozen, all_of_it in ((1, 1, False), ("all", 2, True), (2, 2, True), (0, 0, False)):
            backbone.freeze(stages)
            assert (backbone.frozen, backbone.is_frozen) == (frozen, all_of_it)

    def test_frozen_layers_rest_whatever_train_is_told(self):
        model = nn.ModuleDict({"backbone": Pyramid(), "head": nn.Dropout()})
        backbone = model["backbone"]
        backbone.freeze(1)
        for mode in (True, False, True):
            model.train(mode)
            assert backbone.training is model["head"].training is mode
            assert not any(module.training for module in backbone.body[0].modules())
            assert all(module.training is mode for module in backbone.body[1].modules())

    def test_thawing_restores_everything(self):
        backbone = Pyramid()
        before = {name: module.training for name, module in backbone.named_modules()}
        for stages in ("all", 1):
            backbone.freeze(stages)
            backbone.freeze(0)
            assert {name: module.training for name, module in backbone.named_modules()} == before
            assert all(parameter.requires_grad for parameter in backbone.parameters())
        state = copy.deepcopy(backbone.state_dict())
        train_steps(backbone, torch.optim.SGD(backbone.parameters(), lr=0.1))
        assert changed(backbone, state) == set(state)

    def test_freezing_in_eval_mode_stays_there(self):
        backbone = Pyramid().eval()
        backbone.freeze(1)
        backbone.freeze(0)
        assert not any(module.training for module in backbone.modules())


class TestProbe:
    def test_says_nothing_where_all_is_as_declared(self):
        backbone = Pyramid()
        before = copy.deepcopy(backbone.state_dict())
        backbone.probe()
        assert backbone.training
        assert not changed(backbone, before)  # batch norm has not seen the empty image

    @pytest.mark.parametrize(
        ("settings", "row"),
        [
            ({"levels": (Level(4, 2), Level(8, 4))}, r"\(1, 8, 16, 17\) +\(1, 6, 16, 17\)"),
            ({"levels": (Level(4, 2), Level(6, 8))}, r"\(1, 6, 8, 9\) +\(1, 6, 16, 18\)"),
            ({"levels": (Level(4, 2),)}, r"- +\(1, 6, 16, 17\)"),
            ({"prefix_tokens": 1}, r"\(1, 1, 6\) +-"),
        ],
    )
    def test_shows_what_differs(self, settings: dict, row: str):
        with pytest.raises(ValueError, match=rf"Pyramid declares other features than it returns[\s\S]*{row}"):
            Pyramid(**settings).probe()

    def test_needs_no_values(self):
        with torch.device("meta"):
            Pyramid().probe()
        Echo().probe()  # nor parameters
