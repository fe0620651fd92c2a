import pytest
import torch

from framework.data.loader import KeyedBatches, KeyedLoader, KeyedSamples, SampleKey, collate


class Numbers:
    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def read(self, index):
        return {"value": torch.tensor([float(index)]), "id": str(index)}


def jitter(sample):
    return {**sample, "value": sample["value"] + torch.rand(1)}


def loader(length=22, workers=0, rank=0, world=1, shuffle=True, seed=3, batch_size=4):
    dataset = KeyedSamples(Numbers(length), jitter, seed)
    batches = KeyedBatches(length, batch_size, seed, shuffle, rank, world)
    return KeyedLoader(dataset, batches, num_workers=workers, collate_fn=_collate)


def _collate(samples):
    return collate(samples, {})


def epoch(loader, number):
    loader.batch_sampler.set_epoch(number)
    return [(batch["id"], batch["value"]) for batch in loader]


def same(first, second):
    return len(first) == len(second) and all(
        a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(first, second, strict=True)
    )


def test_workers_change_nothing():
    alone, helped = loader(), loader(workers=2)
    for number in range(2):
        assert same(epoch(alone, number), epoch(helped, number))


def test_epochs_and_seeds_differ_in_order_and_augmentation():
    assert not same(epoch(loader(), 0), epoch(loader(), 1))
    assert not same(epoch(loader(seed=3), 0), epoch(loader(seed=4), 0))


def test_a_samples_augmentation_does_not_depend_on_its_batch():
    drawn = [
        dict(zip([i for b in e for i in b[0]], torch.cat([b[1] for b in e]), strict=True))
        for e in (epoch(loader(batch_size=2), 0), epoch(loader(batch_size=5), 0))
    ]
    for name in drawn[0].keys() & drawn[1].keys():
        assert torch.equal(drawn[0][name], drawn[1][name])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_an_interrupted_epoch_goes_on_where_it_stopped(workers, stop):
    whole = epoch(loader(), 1)
    first = loader(workers=workers)
    first.batch_sampler.set_epoch(1)
    batches = iter(first)
    seen = [next(batches) for _ in range(stop)]
    state = first.state_dict()
    second = loader(workers=workers)
    second.load_state_dict(state)
    rest = [(batch["id"], batch["value"]) for batch in second] if state["batch"] else []
    assert same([(b["id"], b["value"]) for b in seen] + rest, whole)
    assert (second.batch_sampler.epoch == 2) == (stop == 5)


def test_an_epoch_cut_short_leaves_nothing_out_of_the_next():
    first = loader()
    batches = iter(first)
    next(batches)  # all that trainer.limit_train_batches lets through
    second = loader()
    second.load_state_dict(first.state_dict())
    assert same(epoch(second, 1), epoch(loader(), 1))


@pytest.mark.parametrize("stop", [3, 5])
def test_a_run_stopped_again_before_its_next_batch_is_where_it_was(stop):
    first = loader()
    batches = iter(first)
    for _ in range(stop):
        next(batches)
    second = loader()
    second.load_state_dict(first.state_dict())
    second.batch_sampler.set_epoch(0)  # as Lightning does, even where no batch of the epoch is left
    assert second.state_dict() == first.state_dict()


def test_processes_share_an_epoch_without_overlap():
    parts = [
        [name for names, _ in epoch(loader(length=24, rank=rank, world=3), 0) for name in names] for rank in range(3)
    ]
    assert len({len(part) for part in parts}) == 1
    assert sorted((name for part in parts for name in part), key=int) == [str(i) for i in range(24)]


def test_evaluation_counts_every_sample_once_on_any_number_of_processes():
    for world in (1, 2, 3):
        seen = []
        lengths = set()
        for rank in range(world):
            batches = list(KeyedBatches(7, 2, 0, False, rank, world))
            lengths.add(len(batches))
            seen += [key.index for batch in batches for key in batch if not key.is_pad]
        assert sorted(seen) == list(range(7))
        assert len(lengths) == 1


def test_collate_pads_smaller_tensors_with_their_fill():
    samples = [
        {"mask": torch.ones(2, 3), "id": "a", "is_pad": False, "size": (2, 3)},
        {"mask": torch.ones(3, 1), "id": "b", "is_pad": True, "size": (3, 1)},
    ]
    batch = collate(samples, {"mask": 255})
    assert batch["mask"].shape == (2, 3, 3)
    assert batch["mask"][0, 2].tolist() == [255, 255, 255]
    assert batch["mask"][1, :, 1:].eq(255).all()
    assert batch["is_pad"].tolist() == [False, True]
    assert batch["size"] == [(2, 3), (3, 1)]


def test_keys_survive_as_tuples():
    assert SampleKey(3, 1) == (3, 1, False, None)
