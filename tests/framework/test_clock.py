import torch

from framework.clock import key, keyed_randomness, permutation


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
