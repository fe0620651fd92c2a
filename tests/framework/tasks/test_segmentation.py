from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score

from framework.data.mask_folder import MaskFolder
from framework.errors import ConfigError
from framework.heads.decoders import UNet
from framework.heads.dense import LinearHead
from framework.inference import DenseInference
from framework.losses.segmentation import CrossEntropy
from framework.tasks.segmentation import Segmentation, segmentation_metrics
from tests.folders import write_mask_folder
from tests.tiny import Tiny


def task(**options):
    return Segmentation(Tiny(), **{"num_classes": 3, "head": LinearHead, **options})


def trainer(tmp_path, **options):
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
        **{"max_epochs": 1, **options},
    )


def mixed(tmp_path, **options):
    root = write_mask_folder(tmp_path / "mixed", sizes=[(41, 53), (64, 48), (33, 77)], counts=(4, 7, 0))
    return MaskFolder(str(root), **{"batch_size": 2, "num_workers": 0, "crop_size": 32, **options})


def test_metrics_against_scikit_learn():
    rng = np.random.default_rng(0)
    target, prediction = rng.integers(0, 4, 5000), rng.integers(0, 4, 5000)
    confusion = torch.tensor(confusion_matrix(target, prediction), dtype=torch.double)
    metrics = segmentation_metrics(confusion, list("abcd"))
    assert float(metrics["miou"]) == pytest.approx(jaccard_score(target, prediction, average="macro"))
    assert float(metrics["dice"]) == pytest.approx(f1_score(target, prediction, average="macro"))
    assert float(metrics["pixel_accuracy"]) == pytest.approx((target == prediction).mean())
    for index, iou in enumerate(jaccard_score(target, prediction, average=None)):
        assert float(metrics[f"iou/{'abcd'[index]}"]) == pytest.approx(iou)


def test_a_class_that_occurs_nowhere_does_not_count():
    metrics = segmentation_metrics(torch.tensor([[8.0, 2, 0], [0, 5, 0], [0, 0, 0]]), list("abc"))
    assert metrics["iou/c"].isnan()
    assert float(metrics["miou"]) == pytest.approx((8 / 10 + 5 / 7) / 2)


@pytest.mark.parametrize("size", [(8, 8), (37, 51), (1, 1), (100, 30)])
@pytest.mark.parametrize("head", [LinearHead, UNet])
def test_images_of_any_size_come_back_at_their_own(size, head):
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    assert task(head=head).eval()(images).shape == (2, 3, *size)


def test_padded_around_the_result_is_stretched_over_the_image():
    model, images = task(padding="around").eval(), torch.rand(2, 3, 37, 51)
    padded = model.backbone.mean.expand(2, 3, 40, 56).clone()
    padded[..., 1:38, 2:53] = images
    coarse = model.head.coarse(model.backbone(padded), (40, 56))
    torch.testing.assert_close(model(images), torch.nn.functional.interpolate(coarse, size=(37, 51), mode="bilinear"))


def predictions(model, module, tmp_path):
    out = trainer(tmp_path).predict(model, module.val_dataloader())
    return [classes for batch in out for classes in batch]


def test_predictions_do_not_depend_on_batch_mates_workers_or_order(tmp_path):
    model = task().eval()
    alone = predictions(model, mixed(tmp_path, batch_size=1), tmp_path)
    together = predictions(model, mixed(tmp_path, batch_size=4, num_workers=2), tmp_path)
    sizes = [(64, 48), (33, 77), (41, 53)]
    assert [tuple(p.shape) for p in alone] == [sizes[i % 3] for i in range(7)]
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def independent_scores(model, module):
    """Confusion matrix of the val split by scikit-learn, image by image."""
    total = np.zeros((3, 3))
    samples = module.splits()["val"]
    for index in range(len(samples)):
        sample = samples.read(index)
        with torch.no_grad():
            predicted = model(sample["image"][None]).argmax(1)[0].numpy()
        target = sample["mask"].numpy()
        keep = target != 255
        total += confusion_matrix(target[keep], predicted[keep], labels=[0, 1, 2])
    iou = np.diag(total) / (total.sum(0) + total.sum(1) - np.diag(total))
    return iou.mean(), np.diag(total).sum() / total.sum()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_validation_equals_scoring_each_image_by_hand(tmp_path, batch_size):
    module = mixed(tmp_path, batch_size=batch_size)
    model = task().eval()
    (metrics,) = trainer(tmp_path).validate(model, module, verbose=False)
    miou, accuracy = independent_scores(model, module)
    assert metrics["val/miou"] == pytest.approx(miou, abs=1e-6)
    assert metrics["val/score"] == metrics["val/miou"]
    assert metrics["val/pixel_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert set(metrics) == set(model.metric_names())


def test_pads_that_even_out_processes_are_not_counted(tmp_path):
    module = mixed(tmp_path, batch_size=4)
    model = task().eval()
    batch = next(iter(module.val_dataloader()))
    batch["mask"] = batch["mask"].long()
    model.validation_step(batch, 0)
    whole = model.val_metrics.confusion.compute().clone()
    model.val_metrics.reset()
    batch["is_pad"][1] = True
    model.validation_step(batch, 0)
    height, width = batch["original_size"][1]
    assert int(whole.sum() - model.val_metrics.confusion.compute().sum()) == height * width


def test_ignored_pixels_count_neither_in_loss_nor_in_metrics(tmp_path):
    model = task().eval()
    batch = next(iter(mixed(tmp_path, batch_size=1).val_dataloader()))
    mask = batch["mask"].long()
    mask[:, :20] = 255
    model.validation_step({**batch, "mask": mask}, 0)
    assert int(model.val_metrics.confusion.compute().sum()) == int((mask != 255).sum())
    logits = model(batch["image"])
    changed = mask.clone()
    changed[:, :5] = 255
    assert torch.equal(model.loss(logits, mask, 255), model.loss(logits, changed, 255))


def train(tmp_path, workers):
    torch.manual_seed(0)
    model = task(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1))
    trainer(tmp_path, max_epochs=2).fit(model, mixed(tmp_path, num_workers=workers, batch_size=2))
    return model.state_dict()


def test_the_number_of_workers_does_not_change_training(tmp_path):
    first, second = train(tmp_path, 0), train(tmp_path, 2)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_training_learns(tmp_path):
    root = write_mask_folder(tmp_path / "set", counts=(8, 4, 0))
    module = MaskFolder(str(root), batch_size=4, num_workers=0, crop_size=48, repeats=2, photometric=None)
    head = partial(UNet, channels=(32, 32, 16, 16, 16))
    model = task(head=head, optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-2))
    (before,) = trainer(tmp_path).validate(model, module, verbose=False)
    trainer(tmp_path, max_epochs=20).fit(model, module)
    (after,) = trainer(tmp_path).validate(model, module, verbose=False)
    assert before["val/miou"] < 0.4
    assert after["val/miou"] > 0.55


def test_every_parameter_is_in_one_group_and_norms_are_not_decayed():
    model = task(freeze=1)
    groups = {group["name"]: group for group in model.build_optimizer(model.partition()).param_groups}
    assert set(groups) == {"backbone/decay", "backbone/no_decay", "head/decay", "head/no_decay"}
    assert sum(len(group["params"]) for group in groups.values()) == len(list(model.parameters()))
    assert groups["backbone/no_decay"]["weight_decay"] == 0
    assert all(parameter.ndim == 1 for parameter in groups["backbone/no_decay"]["params"])


def test_the_backbone_learns_at_its_own_rate_and_the_schedule_keeps_the_ratio(tmp_path):
    model = task(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.4), backbone_lr_factor=0.25)
    run = trainer(tmp_path, max_epochs=2)
    run.fit(model, mixed(tmp_path))
    rates = {group["name"]: group["initial_lr"] for group in run.optimizers[0].param_groups}
    assert rates["backbone/decay"] == pytest.approx(0.1)
    assert rates["head/decay"] == pytest.approx(0.4)
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-6)  # cosine, at its end


def test_a_frozen_backbone_stays_bit_equal(tmp_path):
    model = task(freeze="all")
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    trainer(tmp_path).fit(model, mixed(tmp_path))
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())


def test_contradictions_are_refused_at_the_door():
    with pytest.raises(ConfigError, match="2 class_weights and the data has 3 classes"):
        task(loss=CrossEntropy(class_weights=[1.0, 2.0]))
    with pytest.raises(ConfigError, match="also a class"):
        task(ignore_index=1)
    with pytest.raises(ConfigError, match="2 names for 3 classes"):
        task(class_names=["a", "b"])
    with pytest.raises(ConfigError, match="has 2 stages"):
        task(freeze=3)


def test_windows_and_flips_work_inside_the_task(tmp_path):
    model = task(inference=DenseInference(window=24, flip=True, scales=(0.75, 1.0))).eval()
    assert [tuple(p.shape) for p in predictions(model, mixed(tmp_path), tmp_path)][:2] == [(64, 48), (33, 77)]
