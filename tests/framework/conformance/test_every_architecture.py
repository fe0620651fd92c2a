"""Every architecture that has a name passes the conformance kit: `pytest -m matrix`, since it takes an hour.

A plain run tries one network of a kind (test_backbones.py). The training step is tried under the two linear heads; the
families are tried under every head by tests/test_matrix.py. Networks above 310 M parameters are left out: the kit holds
several copies, with gradients, and they differ from their smaller kin in numbers only.
"""

from collections.abc import Iterator

import pytest

from framework.architectures import Architecture, read_architectures
from framework.cli.construct import maker
from framework.conformance import backbones as kit
from framework.conformance import check_plugin
from framework.conformance.training import heads_by_task
from framework.registry import Advert, advertised

LARGEST = 310  # M parameters
TRIED = [row for row in read_architectures().values() if (row.parameters or 0) < LARGEST]
LEFT_OUT = [name for name, row in read_architectures().items() if row not in TRIED]


def test_only_the_largest_is_left_out():
    assert LEFT_OUT == ["dinov2_giant"]


@pytest.mark.matrix
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("row", TRIED, ids=lambda row: row.name)
def test_an_architecture_passes_every_check(row: Architecture, monkeypatch: pytest.MonkeyPatch):
    def few() -> Iterator[tuple[Advert, Advert]]:
        return (pair for pair in heads_by_task() if pair[1].name in ("LinearHead", "LinearClassifier"))

    monkeypatch.setattr(kit, "heads_by_task", few)
    verdicts = check_plugin(maker(advertised()[row.backbone], row.words))
    assert {v.name: v.found or v.rests_on for v in verdicts if v.outcome != "passed"} == {}
