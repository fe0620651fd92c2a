from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from framework.data.depth_folder import DepthFolder
from framework.errors import ConfigError
from framework.heads.decoders import UNet
from framework.heads.dense import LinearHead
from framework.heads.depth import LinearDepth
from framework.heads.depth_output import Bins, LinearRegression, LogRegression
from framework.inference import DepthInference
from framework.losses.depth import L1, DepthLossSum, ScaleShiftInvariant
from framework.prediction import PredictionWriter
from framework.tasks.depth import Depth
from tests.folders import write_depth_folder
from tests.framework.tasks.test_segmentation import trainer
from tests.tiny import Tiny

RANGE = (0.5, 8.0)


def task(**options):
    head = partial(LinearDepth, upsample=1)
    return Depth(Tiny(), **{"depth_range": RANGE, "head": head, "output": Bins(8), **options})


def module(tmp_path, **options):
    root = write_depth_folder(tmp_path / "rooms", sizes=[(41, 53), (64, 48), (33, 77)], counts=(4, 7, 0))
    return DepthFolder(
        str(root), **{"depth_range": RANGE, "batch_size": 2, "num_workers": 0, "crop_size": 32, **options}
    )


@pytest.mark.parametrize("padding", ["corner", "around"])
@pytest.mark.parametrize("head", [LinearHead, UNet])
def test_images_of_any_size_come_back_at_their_own_within_the_range(head, padding):
    images = torch.randint(0, 256, (2, 3, 37, 51), dtype=torch.uint8)
    depth = task(head=head, padding=padding).eval()(images)
    assert depth.shape == (2, 37, 51)
    assert RANGE[0] <= depth.min() < depth.max() <= RANGE[1]


def test_around_stretches_where_corner_cuts():
    """A network that sees the same colour everywhere but at the left edge tells where its map is laid."""
    images = torch.full((1, 3, 24, 36), 0.5)
    images[..., :2] = 1.0
    shown = {how: task(padding=how, output=LogRegression()).eval()(images)[0] for how in ("corner", "around")}
    assert not torch.allclose(shown["corner"], shown["around"], atol=1e-4)
    whole = torch.rand(1, 3, 24, 40)  # what needs no padding is the same both ways
    torch.manual_seed(0)
    one = task().eval()
    other = task(padding="around").eval()
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(whole), other(whole))


@pytest.mark.parametrize("padding", ["corner", "around"])
def test_metres_are_made_and_clamped_at_the_heads_resolution_and_then_resized(padding):
    images = torch.rand(2, 3, 37, 51)
    head = partial(LinearDepth, layers=1, upsample=1)  # maps of stride 8, of images of 40 x 56
    model = task(head=head, padding=padding, output=LinearRegression("relu")).eval()
    torch.nn.init.normal_(model.head.project.weight, std=10.0)
    top, left = (1, 2) if padding == "around" else (0, 0)
    if padding == "around":
        padded = model.backbone.mean.expand(2, 3, 40, 56).clone()
        padded[..., top : top + 37, left : left + 51] = images
    else:
        padded = torch.nn.functional.pad(images, (0, 5, 0, 3), mode="replicate")
    raw = model.head.coarse(model.backbone(padded), (40, 56))
    assert raw.shape[-2:] == (5, 7)
    free = RANGE[0] + raw.relu()
    assert free.max() > RANGE[1]
    for depth, training in ((free.clamp(max=RANGE[1]), False), (free, True)):
        model.training = training  # of the task alone: batch norm rests
        size = (37, 51) if padding == "around" else (40, 56)
        wanted = torch.nn.functional.interpolate(depth, size=size, mode="bilinear")[:, 0, :37, :51]
        torch.testing.assert_close(model(images), wanted)


def test_the_loss_is_told_the_step_and_shown_only_what_is_in_range(tmp_path, monkeypatch):
    seen = []

    class Noted(L1):
        def forward(self, prediction, target, step=None):
            seen.append((step, bool((target <= RANGE[1]).all())))
            return super().forward(prediction, target, step)

    model = task(loss=Noted())
    trainer(tmp_path, limit_val_batches=0).fit(model, module(tmp_path))
    assert [step for step, _ in seen] == [0, 1]
    seen.clear()
    batch = model.example_batch(2, 32, 32)
    batch["depth"][:] = 50.0
    monkeypatch.setattr(model, "log", lambda *_, **__: None)
    model.training_step(batch, 0)
    model.eval().validation_step(batch, 0)
    assert seen == [(2, True), (None, True), (None, True)]


def test_the_crop_and_the_alignments_hold_for_both_splits():
    model = task(crop="garg", alignment=["median"])
    for metrics in (model.val_metrics, model.test_metrics):
        assert (metrics.crop, metrics.alignments) == ("garg", ("median",))
        assert (metrics.near, metrics.far) == RANGE


def by_hand(model, data):
    """Per-image and per-pixel errors of the val split, in numpy, image by image."""
    images, pixels = [], []
    samples = data.splits()["val"]
    for index in range(len(samples)):
        sample = samples.read(index)
        with torch.no_grad():
            predicted = model(sample["image"][None])[0].double().numpy()
        target = sample["depth"].double().numpy()
        keep = (target >= RANGE[0]) & (target <= RANGE[1])
        p, t = predicted[keep], target[keep]
        images.append((np.abs(p - t) / t).mean())
        pixels.append(np.abs(p - t) / t)
        images[-1] = (images[-1], np.sqrt(((p - t) ** 2).mean()), (np.maximum(p / t, t / p) < 1.25).mean())
    return np.array(images).mean(0), np.concatenate(pixels).mean()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_validation_equals_scoring_each_image_by_hand(tmp_path, batch_size):
    data, model = module(tmp_path, batch_size=batch_size), task().eval()
    (metrics,) = trainer(tmp_path).validate(model, data, verbose=False)
    (abs_rel, rmse, delta), pixels = by_hand(model, data)
    assert metrics["val/image/abs_rel"] == pytest.approx(abs_rel, rel=1e-5)
    assert metrics["val/image/rmse"] == pytest.approx(rmse, rel=1e-5)
    assert metrics["val/pixel/abs_rel"] == pytest.approx(pixels, rel=1e-5)
    assert metrics["val/score"] == metrics["val/image/delta1"] == pytest.approx(delta, abs=1e-6)
    assert set(metrics) == set(model.metric_names())


def test_pads_that_even_out_processes_are_not_counted(tmp_path):
    data, model = module(tmp_path, batch_size=4), task().eval()
    batch = next(iter(data.val_dataloader()))
    batch["is_pad"][1:] = True
    model.validation_step(batch, 0)
    counted = model.val_metrics.compute()
    model.val_metrics.reset()
    alone = next(iter(module(tmp_path, batch_size=1).val_dataloader()))
    model.validation_step(alone, 0)
    assert all(torch.allclose(value, counted[name], rtol=1e-5) for name, value in model.val_metrics.compute().items())


def test_what_is_no_reading_or_out_of_range_becomes_0():
    depth = torch.tensor([float("nan"), float("inf"), -1.0, 0.0, 0.4, 0.5, 8.0, 8.1])
    assert task().readings(depth).tolist() == [0, 0, 0, 0, 0, 0.5, 8.0, 0]


def test_a_relative_loss_asks_for_an_alignment_and_the_score_is_that_of_it(tmp_path):
    with pytest.raises(ConfigError, match=r"model\.loss: ScaleShiftInvariant leaves scale .* set model\.alignment"):
        task(loss=ScaleShiftInvariant())
    model = task(loss=ScaleShiftInvariant(), alignment=["median"]).eval()
    (metrics,) = trainer(tmp_path).validate(model, module(tmp_path), verbose=False)
    assert metrics["val/score"] == metrics["val/image/delta1/median"] != metrics["val/image/delta1"]
    metric = task(loss=DepthLossSum([ScaleShiftInvariant(), L1()]), alignment=["median"]).eval()
    (metrics,) = trainer(tmp_path).validate(metric, module(tmp_path), verbose=False)
    assert metrics["val/score"] == metrics["val/image/delta1"]


def test_a_mirrored_view_is_averaged_in_metres():
    model, images = task().eval(), torch.rand(2, 3, 32, 40)
    both = DepthInference(flip=True)(model, images)
    assert torch.allclose(both, (model(images) + model(images.flip(-1)).flip(-1)) / 2)
    assert torch.allclose(both.flip(-1), DepthInference(flip=True)(model, images.flip(-1)), atol=1e-6)


def test_windows_cover_the_image_and_are_averaged():
    model = task().eval()
    seen = []

    def network(images):
        seen.append(tuple(images.shape[-2:]))
        return model(images)

    depth = DepthInference(window=(24, 32), overlap=0.5)(network, torch.rand(1, 3, 40, 64))
    assert depth.shape == (1, 40, 64)
    assert set(seen) == {(24, 32)}
    flat = DepthInference(window=16)(lambda images: images[:, 0] + 1, torch.rand(1, 3, 40, 64))
    assert flat.shape == (1, 40, 64)


@pytest.mark.parametrize("depth_range", [(0.0, 10.0), (2.0, 2.0), (5.0, 1.0), (1.0, float("inf"))])
def test_a_range_that_is_none_is_refused(depth_range):
    with pytest.raises(ConfigError, match=r"data\.depth_range"):
        task(depth_range=depth_range)


def test_a_checkpoint_for_other_depths_is_refused():
    checkpoint = {}
    task().on_save_checkpoint(checkpoint)
    with pytest.raises(
        ConfigError, match=r"trained for depths of 0\.5 to 8 m, .* set data\.depth_range to \[0\.5, 8\]"
    ):
        task(depth_range=(0.001, 80.0)).check_outputs(checkpoint)


def test_a_checkpoint_under_another_output_of_the_same_shape_is_refused():
    checkpoint = {}
    task(output=Bins(8)).on_save_checkpoint(checkpoint)
    task(output=Bins(8)).check_outputs(checkpoint)
    with pytest.raises(ConfigError, match=r"with the output Bins \(.*uniform.*, and model\.output is Bins \(.*log"):
        task(output=Bins(8, "log")).check_outputs(checkpoint)
    task().check_outputs(checkpoint)


def test_predictions_are_16_bit_pictures_tables_and_point_clouds(tmp_path):
    model = task(intrinsics=(50.0, 50.0, 20.0, 15.0)).eval()
    batch = model.example_batch(2, 31, 43)
    batch["id"], batch["original_size"] = ["a", "b"], [(31, 43), (62, 86)]
    with torch.no_grad():
        predictions = model.predict_step(batch, 0)
    assert [tuple(depth.shape) for depth in predictions] == batch["original_size"]
    writer = PredictionWriter(tmp_path)
    writer.write_on_batch_end(trainer(tmp_path), model, predictions, None, batch, 0, 0)
    for name, depth in zip("ab", predictions, strict=True):
        stored = np.asarray(Image.open(tmp_path / f"{name}.png"))
        assert stored.dtype == np.uint16
        assert np.abs(stored / model.steps_per_metre - depth.numpy()).max() <= 0.5 / model.steps_per_metre + 1e-6
        assert (tmp_path / f"{name}.ply").stat().st_size > 15 * depth.numel()
        assert Image.open(tmp_path / f"{name}.depth.jpg").size == depth.shape[::-1]
    record = dict(model.prediction_record(batch, predictions[1], 1))
    assert record["id"] == "b"
    assert float(record["median"]) == pytest.approx(float(predictions[1].median()), abs=1e-4)


def test_a_frozen_backbone_in_bfloat16_changes_features_a_little_and_no_weight(tmp_path):
    torch.manual_seed(0)
    exact = task(freeze="all")
    half = task(freeze="all", frozen_dtype="bfloat16")
    half.load_state_dict(exact.state_dict())
    images = torch.rand(2, 3, 32, 40)
    one, other = exact.backbone(images), half.backbone(images)
    assert all(x.dtype == torch.float32 for x in other.maps)
    gap = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(one.maps, other.maps, strict=True))
    assert 0 < gap < 0.05
    before = {name: value.clone() for name, value in half.backbone.state_dict().items()}
    loss = half.training_step(half.example_batch(2, 32, 40), 0)
    loss.backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in half.head.parameters())
    assert all(torch.equal(value, before[name]) for name, value in half.backbone.state_dict().items())
    thawed = task(frozen_dtype="bfloat16")  # nothing is frozen: as everything else computes
    thawed.load_state_dict(exact.state_dict())
    thawed.eval(), exact.eval()
    assert torch.equal(thawed.backbone(images).maps[0], exact.backbone(images).maps[0])


def test_it_learns_depth_that_follows_colour(tmp_path):
    torch.manual_seed(0)
    head = partial(LinearDepth, layers=2, upsample=1)
    model = Depth(Tiny(), RANGE, head, output=LogRegression(), loss=L1())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    errors = []
    for _ in range(80):
        value = torch.rand(4, 1, 1, 8).repeat_interleave(8, -1).expand(4, 1, 64, 64)
        depth = RANGE[0] + value[:, 0] * (RANGE[1] - RANGE[0])
        loss = model.training_step({"image": value.expand(4, 3, 64, 64), "depth": depth}, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(float(loss.detach()))
    assert np.mean(errors[-10:]) < 0.8  # the best constant is off by 1.9 m


def test_a_precision_that_rounds_what_was_measured_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"trainer\.precision: bf16-true rounds the depths .* set bf16-mixed"):
        trainer(tmp_path, precision="bf16-true").fit(task(), module(tmp_path))
