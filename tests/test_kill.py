"""Training processes that are really killed, with SIGKILL, and what becomes of their runs.

`benchmarks/resume.py` does the same at many random moments; see there how a run is started and killed.
"""

import pytest

from benchmarks.resume import EXPERIMENTS, Kill, broken_run, compare, prepare, start

KILLS = [Kill("step", 4), Kill("write", 1), Kill("boundary")]


@pytest.mark.parametrize("task", [*EXPERIMENTS])
def test_a_run_killed_again_and_again_ends_with_the_bits_of_one_that_never_was(tmp_path, task):
    unbroken, killed = prepare(tmp_path, task, "unbroken"), prepare(tmp_path, task, "killed")
    for experiment in (unbroken / "experiment.yaml", killed / "experiment.yaml"):
        text = experiment.read_text()
        assert "max_epochs: 4" in text
        experiment.write_text(text.replace("max_epochs: 4", "max_epochs: 3"))
    assert start(unbroken).code == 0, (unbroken / "log.txt").read_text()
    ends = list(broken_run(killed, KILLS))
    assert [end.partition(",")[0] for end in ends] == ["step 4", "write 1", "boundary 0"]
    assert compare(unbroken, killed) == []
    assert (killed / "log.txt").read_text().count(".ckpt: epoch ") == len(KILLS)  # none began anew
