import numpy as np
import pytest
import torch

from framework.errors import ConfigError, TrainingError
from framework.metrics.depth import NAMES, DepthMetrics, align, crop_mask, depth_errors
from tests.reference import depth as reference

ALIGNMENTS = ("median", "least_squares", "least_squares_disparity")
RANGE = (0.5, 10.0)


def frames(count=7, seed=0, relative=False):
    """Predictions, targets and losses; some targets out of range or none, and one image without any reading."""
    rng = np.random.default_rng(seed)
    out = []
    for index in range(count):
        size = (24 + index, 31 - index)
        target = rng.uniform(0.6, 9.5, size)
        prediction = target * rng.lognormal(0.05, 0.3, size)
        if relative:
            prediction = 1 / (2 / prediction + 0.3)
        missing = rng.random(size) < 0.3
        target[missing] = rng.choice([0.0, -1.0, np.nan, np.inf, 0.5, 10.0, 12.0], missing.sum())
        prediction[missing] = rng.choice([0.0, np.nan, np.inf, 1.0], missing.sum())
        if index == 3:
            target[:] = 0
        out.append((torch.from_numpy(prediction), torch.from_numpy(target), torch.tensor(rng.uniform(0, 2))))
    return out


def counting(split, **options):
    metrics = DepthMetrics(RANGE, **options)
    for frame in split:
        metrics.update(*frame)
    return metrics


def by_hand(split, crop=None, alignment=None):
    """Errors by average, in loops over images."""
    pixels, tables = [], []
    for prediction, target, _ in split:
        p, t = prediction.numpy(), target.numpy()
        counted = (t > RANGE[0]) & (t < RANGE[1])
        if crop is not None:
            rows, columns = crop
            inside = np.zeros(t.shape, bool)
            inside[rows[0] : rows[1], columns[0] : columns[1]] = True
            counted &= inside
        if not counted.any():
            continue
        p, t = p[counted], t[counted]
        p = np.clip(reference.align(p, t, alignment) if alignment else p, *RANGE)
        pixels.append(np.stack([p, t]))
        tables.append(reference.errors(p, t))
    image = {f"image/{name}": np.mean([table[name] for table in tables]) for name in NAMES}
    pixel = {f"pixel/{name}": value for name, value in reference.errors(*np.concatenate(pixels, 1)).items()}
    return image | pixel


def test_errors_are_the_published_ones_by_image_and_by_pixel():
    split = frames()
    metrics = counting(split, alignments=ALIGNMENTS)
    figures = metrics.compute()
    assert list(figures) == metrics.names()
    assert {value.dtype for value in figures.values()} == {torch.float64}
    for alignment in (None, *ALIGNMENTS):
        for name, value in by_hand(split, alignment=alignment).items():
            key = f"{name}/{alignment}" if alignment else name
            assert figures.pop(key).item() == pytest.approx(value, rel=1e-9), key
    assert figures.pop("score") == metrics.compute()["image/delta1"]
    kept = [loss for index, (_, _, loss) in enumerate(split) if index != 3]
    assert figures.pop("loss").item() == pytest.approx(torch.stack(kept).mean().item())
    assert not figures


def test_averages_by_image_and_by_pixel_differ():
    near, far = torch.full((2, 2), 1.0), torch.full((8, 8), 8.0)
    figures = counting([(near + 0.1, near, torch.tensor(0.0)), (far + 1, far, torch.tensor(1.0))]).compute()
    assert figures["image/rmse"].item() == pytest.approx((0.1 + 1) / 2)
    assert figures["pixel/rmse"].item() == pytest.approx(((4 * 0.01 + 64) / 68) ** 0.5)
    assert figures["image/abs_rel"].item() == pytest.approx((0.1 + 0.125) / 2)
    assert figures["loss"].item() == 0.5


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_alignment_finds_what_was_changed(alignment):
    split = [(target.where(target > 0, 1.0), target, loss) for _, target, loss in frames(3)]
    change = {
        "median": lambda x: 0.3 * x,
        "least_squares": lambda x: 0.3 * x + 2,
        "least_squares_disparity": lambda x: 1 / (0.3 / x + 0.2),
    }[alignment]
    changed = [(change(prediction), target, loss) for prediction, target, loss in split]
    figures = counting(changed, alignments=(alignment,), relative=True).compute()
    assert figures["score"] == 1
    assert figures["score"] == figures[f"image/delta1/{alignment}"] > figures["image/delta1"]
    assert figures[f"pixel/rmse/{alignment}"].item() == pytest.approx(0, abs=1e-6)
    assert figures["image/rmse"] > 0.5


def test_a_prediction_that_is_the_same_everywhere_can_be_aligned():
    _, target, _ = frames(1)[0]
    counted = (target > RANGE[0]) & (target < RANGE[1])
    flat = torch.full_like(target, 1 / 3)
    for alignment, wanted in (
        ("median", target[counted].numpy()),
        ("least_squares", target[counted].mean()),
        ("least_squares_disparity", 1 / (1 / target[counted]).mean()),
    ):
        wanted = np.median(wanted) if alignment == "median" else float(wanted)
        found = align(flat, target, counted, alignment)[counted]
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-6)


def test_what_is_aligned_below_0_disparity_is_as_far_as_can_be():
    target = torch.tensor([[1.0, 2.0, 9.0, 9.5]], dtype=torch.float64)
    prediction = torch.tensor([[1.0, 1.2, 2.0, 8.0]], dtype=torch.float64)
    aligned = align(prediction, target, target > 0, "least_squares_disparity")
    assert aligned[0, 3] > 1e100
    figures = counting([(prediction, target, torch.tensor(0.0))], alignments=("least_squares_disparity",)).compute()
    wanted = reference.align(prediction.numpy()[0], target.numpy()[0], "least_squares_disparity")
    wanted = np.clip(wanted, *RANGE)
    assert wanted[3] == 10
    rmse = np.sqrt(np.mean((wanted - target.numpy()[0]) ** 2))
    assert figures["image/rmse/least_squares_disparity"].item() == pytest.approx(rmse)


@pytest.mark.parametrize(
    ("crop", "size", "rows", "columns"),
    [
        ("nyu_eigen", (480, 640), (45, 471), (41, 601)),
        ("nyu_eigen", (240, 320), (22, 236), (20, 300)),
        ("kitti_eigen", (375, 1242), (124, 342), (44, 1197)),
        ("garg", (375, 1242), (153, 371), (44, 1197)),
        ("garg", (370, 1224), (151, 366), (43, 1180)),  # what the published expressions give
        (None, (3, 4), (0, 3), (0, 4)),
    ],
)
def test_crops_are_the_published_ones(crop, size, rows, columns):
    wanted = np.zeros(size, bool)
    wanted[rows[0] : rows[1], columns[0] : columns[1]] = True
    mask = crop_mask(crop, *size)
    assert mask.dtype == torch.bool
    np.testing.assert_array_equal(mask.numpy(), wanted)


def test_only_what_is_inside_the_crop_counts():
    rng = np.random.default_rng(3)
    target = torch.from_numpy(rng.uniform(1, 9, (48, 64)))
    split = [(target + 0.3, target, torch.tensor(0.0)), (target.sqrt(), target, torch.tensor(0.0))]
    wanted = by_hand(split, crop=((round(4.5), 47), (4, 60)))
    figures = counting(split, crop="nyu_eigen").compute()
    assert {name: figures[name].item() for name in wanted} == pytest.approx(wanted, rel=1e-9)
    assert wanted["image/rmse"] != by_hand(split)["image/rmse"]
    tiny = [(torch.ones(1, 1), torch.ones(1, 1), torch.tensor(0.0)), split[1]]
    assert counting(tiny, crop="garg", alignments=("median",)).compute()["image/rmse"] > 0


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("count", [2, 7])
def test_several_processes_count_what_one_counts_to_the_bit(monkeypatch, processes, count):
    split = frames(count, seed=4)
    alone = counting(split, alignments=("median",)).compute()
    shares = [counting(split[rank::processes], alignments=("median",)) for rank in range(processes)]
    rows = []
    for share in shares:  # what each gives
        monkeypatch.setattr("framework.metrics.depth.gather_rows", lambda own: (rows.append(own), [own])[1])
        try:
            share.compute()
        except TrainingError:
            assert count < processes
        share._computed = None
    monkeypatch.setattr("framework.metrics.depth.gather_rows", lambda own: rows)
    for share in shares:
        assert share.compute() == alone


def test_it_forgets_when_it_is_told_to_and_goes_on_counting_otherwise():
    split = frames()
    metrics = counting(split[:2])
    first = metrics.compute()
    metrics.update(*split[2])
    assert metrics.compute()["pixel/rmse"] != first["pixel/rmse"]
    metrics.reset()
    for frame in split[:2]:
        metrics.update(*frame)
    assert metrics.compute() == first


def test_nothing_counted_says_so():
    with pytest.raises(TrainingError, match=r"between 0.5 m and 10.0 m inside the crop garg: is its unit right\?"):
        counting([(torch.ones(8, 8), torch.full((8, 8), 3000.0), torch.tensor(0.0))], crop="garg").compute()
    with pytest.raises(TrainingError, match="not one pixel"):
        DepthMetrics(RANGE).compute()


def test_a_prediction_that_is_no_number_is_wrong_and_is_seen():
    target = torch.full((2, 2), 4.0)
    prediction = target.clone()
    prediction[0, 0] = torch.nan
    figures = counting([(prediction, target, torch.tensor(0.0))]).compute()
    assert figures["image/rmse"].isnan()
    assert figures["score"] == 0.75


def test_a_prediction_of_0_is_aligned_to_something_finite():
    target = torch.full((3, 3), 5.0)
    for prediction in (torch.zeros(3, 3), torch.zeros(3, 3).index_fill(0, torch.tensor([0, 1]), 4.0)):
        figures = counting([(prediction, target, torch.tensor(0.0))], alignments=ALIGNMENTS).compute()
        assert all(value.isfinite() for value in figures.values())


def test_neither_end_of_the_range_counts_whatever_32_bits_make_of_it():
    ends = torch.tensor([[0.001, 0.7, 0.1]])  # as float32 the first is more than 0.001, the second less than 0.7
    metrics = DepthMetrics((0.001, 0.7))
    metrics.update(ends * 2, ends, torch.tensor(0.0))
    assert metrics.compute()["pixel/rmse"] == pytest.approx(0.1)


def test_a_ratio_of_just_1_25_is_not_below_it():
    errors = depth_errors(torch.tensor([[5.0, 3.125]]), torch.tensor([[4.0, 2.0]]))  # ratios 1.25 and 1.25^2
    assert [errors[f"delta{power}"].item() for power in (1, 2, 3)] == [0, 0.5, 1]


def test_errors_of_one_image():
    prediction, target, _ = frames(1)[0]
    counted = (target > RANGE[0]) & (target < RANGE[1])
    errors = depth_errors(prediction, target, counted)
    wanted = reference.errors(prediction[counted], target[counted])
    assert {name: value.item() for name, value in errors.items()} == pytest.approx(wanted, rel=1e-9)
    readings = target.isfinite() & (target > 0) & prediction.isfinite() & (prediction > 0)
    wanted = reference.errors(prediction[readings], target[readings])
    found = depth_errors(prediction.float(), target.where(readings, 0).float())
    assert found["abs_rel"].item() == pytest.approx(wanted["abs_rel"], rel=1e-6)
    assert depth_errors(prediction, target * 0)["rmse"].isnan()


def test_only_compute_waits_for_the_device():
    """A meta tensor has no values: whoever asks for one fails."""
    metrics = DepthMetrics(RANGE, crop="garg", alignments=ALIGNMENTS)
    metrics.update(*(torch.ones(8, 8, device="meta") for _ in range(2)), torch.ones((), device="meta"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth_range": (10.0, 0.1)}, "0 < nearest < farthest, got 10.0 and 0.1"),
        ({"depth_range": (0.0, 10.0)}, "0 < nearest < farthest"),
        ({"depth_range": RANGE, "crop": "nyu"}, "there is no crop nyu; valid: garg, kitti_eigen, nyu_eigen"),
        ({"depth_range": RANGE, "alignments": ("least_square",)}, "did you mean 'least_squares'"),
        ({"depth_range": RANGE, "relative": True}, "name an alignment; valid: median"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        DepthMetrics(**options)
