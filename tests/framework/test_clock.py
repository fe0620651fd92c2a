import math

import pytest
import torch

from framework.clock import WarmupCosine, key, keyed_randomness, permutation


def test_key_is_the_same_in_every_process_and_release():
    assert key(7, "order", 3) == 1569714343349645784
    assert key(7, "order", 3) != key(7, "order", 4) != key(7, "sample", 4)


def test_keyed_randomness_leaves_the_stream_outside_untouched():
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    first = torch.rand(1)
    with keyed_randomness(0, "x"):
        inside = torch.rand(3)
    with keyed_randomness(0, "x"):
        assert torch.equal(inside, torch.rand(3))
    assert torch.equal(expected, torch.cat([first, torch.rand(1)]))


def test_permutation_is_a_permutation_of_its_own_for_every_epoch():
    orders = [permutation(50, 0, "order", epoch) for epoch in range(3)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_warmup_cosine_follows_its_equation():
    schedule = WarmupCosine(warmup=0.2, start=0.1, end=0.05)
    assert schedule.factor(0, 100) == pytest.approx(0.1)
    assert schedule.factor(10, 100) == pytest.approx(0.55)
    assert schedule.factor(20, 100) == pytest.approx(1.0)
    assert schedule.factor(60, 100) == pytest.approx(0.05 + 0.95 * (1 + math.cos(math.pi / 2)) / 2)
    assert schedule.factor(100, 100) == pytest.approx(0.05)
    assert schedule.factor(150, 100) == pytest.approx(0.05)


def test_warmup_out_of_range_is_refused():
    with pytest.raises(ValueError, match="fraction"):
        WarmupCosine(warmup=1.5)
