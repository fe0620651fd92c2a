import numpy as np
import pytest
import torch

from framework.cli.main import main
from framework.data.image_folder import ImageFolder
from framework.data.loader import KeyedBatches, SampleKey
from framework.errors import ConfigError
from framework.tasks import neighbours
from framework.tasks.neighbours import NearestNeighbours, in_turns
from tests.folders import write_image_folder
from tests.framework.tasks.test_segmentation import trainer
from tests.tiny import Tiny

CLASSES = ("ash", "blue", "green", "red", "rose", "sand")


@pytest.fixture
def module(tmp_path):
    write_image_folder(tmp_path / "set", counts=(4, 3, 1), classes=CLASSES)
    return ImageFolder(str(tmp_path / "set"), batch_size=5, num_workers=0, image_size=24)


def task(**options):
    return NearestNeighbours(Tiny(), **{"num_classes": len(CLASSES), "neighbours": [3, 1, 20], **options}).eval()


def features(model, samples, count):
    """Features of the first samples of a split, and their classes, image by image."""
    every = [samples[SampleKey(index, 0)] for index in range(count)]
    with torch.no_grad():
        rows = [model.backbone(sample["image"][None].float() / 255).maps[-1].mean((2, 3))[0] for sample in every]
    return np.stack([row.double().numpy() for row in rows]), np.array([int(sample["label"]) for sample in every])


def vote(query, known, labels, count, temperature=0.07):
    """Votes for each class by the definition, one training image after the other."""
    cosines = known @ query / np.linalg.norm(known, axis=1) / np.linalg.norm(query)
    votes = np.zeros(len(CLASSES))
    for index in np.argsort(-cosines)[:count]:
        votes[labels[index]] += np.exp((cosines[index] - 1) / temperature)
    return votes


@pytest.mark.parametrize("chunk", [7, 1 << 17])
def test_validation_equals_voting_image_by_image(tmp_path, module, monkeypatch, chunk):
    monkeypatch.setattr(neighbours, "CHUNK", chunk)
    model = task()
    (figures,) = trainer(tmp_path).validate(model, module, verbose=False)
    assert set(figures) == set(model.metric_names())
    known, labels = features(model, module.reference_dataloader().dataset, module.counts["train"])
    queries, true = features(model, module.val_dataloader().dataset, module.counts["val"])
    for count in (1, 3, 20):
        votes = np.stack([vote(query, known, labels, count) for query in queries])
        assert figures[f"val/accuracy/k{count}"] == pytest.approx((votes.argmax(1) == true).mean())
        best = np.argsort(-votes, axis=1)[:, :5]
        hits = [t in row and v[t] > 0 for t, row, v in zip(true, best, votes, strict=True)]
        assert figures[f"val/top5/k{count}"] == pytest.approx(np.mean(hits))
    assert figures["val/score"] == figures["val/accuracy"] == figures["val/accuracy/k3"]
    assert figures["val/top5"] == figures["val/top5/k3"]


def test_pads_do_not_vote(tmp_path, module, monkeypatch):
    model = task()
    trainer(tmp_path).validate(model, module, verbose=False)
    batches = list(module.reference_dataloader())
    batches[-1]["is_pad"][-1] = True
    monkeypatch.setattr(model, "_training_split", lambda: batches)
    everyone, model.known = model.known, None
    model.learn()
    assert torch.equal(model.known, everyone[:-1])
    assert len(model.known_labels) == len(everyone) - 1


def test_near_images_weigh_more_and_votes_sum_to_1():
    model = task(temperature=0.1, neighbours=[3])
    angles = torch.tensor([0.1, 0.6, 0.7])
    model.known, model.known_labels = torch.stack([angles.cos(), angles.sin()], 1), torch.tensor([4, 2, 2])
    query = torch.tensor([[1.0, 0.0]])
    weights = torch.exp(angles.cos() / 0.1)
    wanted = torch.zeros(len(CLASSES)).index_add(0, model.known_labels, weights / weights.sum())
    torch.testing.assert_close(model.votes(query)[0, 0], wanted)
    assert wanted[4] > wanted[2]


def test_features_of_several_processes_are_put_in_the_order_of_the_images():
    keys = [[key for batch in KeyedBatches(13, 2, 0, False, rank, 4) for key in batch] for rank in range(4)]
    gathered = torch.tensor([[key.index for key in own] for own in keys])
    pads = in_turns(torch.tensor([[key.is_pad for key in own] for own in keys]))
    assert pads.sum() == 3
    assert in_turns(gathered)[~pads].tolist() == list(range(13))


def test_what_makes_no_sense_is_refused(tmp_path, module, capsys):
    with pytest.raises(ConfigError, match="numbers that differ"):
        task(neighbours=[3, 3])
    with pytest.raises(ConfigError, match="one class for every image"):
        task(multi_label=True)
    with pytest.raises(ConfigError, match="25 are to vote, and the train split has 24 images"):
        task(neighbours=[25]).check_command("validate", module)
    options = ["--model.backbone", "Timm", "--model.backbone.name", "test_vit", "--data", "ImageFolder"]
    assert main(["fit", "--model", "NearestNeighbours", *options, "--data.root", str(tmp_path / "set")]) == 2
    assert "trains nothing: run `framework validate`" in capsys.readouterr().err
