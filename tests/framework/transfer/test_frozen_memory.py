"""The memory of a frozen step: that of the forward pass alone and of the head's step, counted tensor by tensor."""

import pytest
import torch

from benchmarks.frozen_memory import LIMIT, TensorMemory, build, peak_bytes, train, train_apart

MIB = 2**20


def test_bytes_are_counted_as_by_hand():
    before, weight = torch.ones(256, 1024), torch.ones(1024, 1024, requires_grad=True)  # 1 MiB and 4 MiB
    with TensorMemory() as memory:
        product = before @ weight
        assert (memory.live, memory.peak) == (MIB, MIB)
        rectified = product.relu()
        assert (memory.live, memory.peak) == (2 * MIB, 2 * MIB)
        del product  # which nothing keeps: the gradient of relu needs its result alone
        assert (memory.live, memory.peak) == (MIB, 2 * MIB)
        loss = rectified.view(-1)[:1].sum()  # a view takes nothing, the sum four bytes
        assert (memory.live, memory.peak) == (MIB + 4, 2 * MIB)
        loss.backward()
    # Beside `rectified`: the gradient of the product while that of the weight is made of it; the loss and its gradient.
    assert memory.live == MIB + 4 + 4 * MIB
    assert memory.peak == pytest.approx(6 * MIB, abs=16)
    weight.grad = None
    assert memory.live == MIB + 4


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_frozen_backbone_keeps_no_activations(name, kind):
    frozen, apart, trained = build(kind, name, "all"), build(kind, name, "all"), build(kind, name, 0)
    batch = frozen.example_batch(4, 96, 96)
    reference = peak_bytes(train_apart, apart, batch)
    assert peak_bytes(train, frozen, batch) <= LIMIT * reference
    assert peak_bytes(train, trained, batch) > LIMIT * reference
