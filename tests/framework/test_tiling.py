import pytest
import torch
from torchvision.ops import box_iou

from framework.boxes import Detections
from framework.errors import ConfigError
from framework.tiling import DetectionInference, average_views, mirror_boxes


def paint(objects, size):
    """Class and number of each object as the colour of its pixels; later ones lie upon earlier ones."""
    image = torch.zeros(3, *size, dtype=torch.uint8)
    for number, (x1, y1, x2, y2, label) in enumerate(objects, 1):
        image[:, y1:y2, x1:x2] = torch.tensor([label, number, 0], dtype=torch.uint8)[:, None, None]
    return image


def find_colours(images, sizes):
    """A network that finds the visible part of every object exactly; of a part it may be surer than of the whole."""
    found = []
    for image, (height, width) in zip(images, sizes, strict=True):
        image = image[:, :height, :width]
        boxes, scores, labels = [], [], []
        for number in image[1].unique().tolist():
            rows, columns = (image[1] == number).nonzero(as_tuple=True)
            if number:
                boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                scores.append(0.6 + 0.39 * ((len(rows) * 0.618) % 1))
                labels.append(int(image[0, rows[0], columns[0]]))
        found.append(
            Detections(
                torch.tensor(boxes).reshape(-1, 4).float(), torch.tensor(scores), torch.tensor(labels, dtype=torch.long)
            )
        )
    return found


def as_set(found):
    return sorted((*box, label) for box, label in zip(found.boxes.tolist(), found.labels.tolist(), strict=True))


def scattered(seed, size, largest, count=40):
    """Boxes that do not touch one another."""
    draw = torch.Generator().manual_seed(seed)
    objects = []
    for _ in range(count):
        height, width = (int(torch.randint(4, side + 1, (), generator=draw)) for side in largest)
        y1 = int(torch.randint(0, size[0] - height + 1, (), generator=draw))
        x1 = int(torch.randint(0, size[1] - width + 1, (), generator=draw))
        if all(x1 > o[2] + 1 or x1 + width + 1 < o[0] or y1 > o[3] + 1 or y1 + height + 1 < o[1] for o in objects):
            objects.append((x1, y1, x1 + width, y1 + height, int(torch.randint(0, 3, (), generator=draw))))
    return objects


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    ("tile", "whole", "largest"), [(64, False, (16, 16)), (64, True, (150, 150)), ((48, 90), True, (60, 70))]
)
def test_objects_on_tile_borders_are_found_once_each(seed, tile, whole, largest):
    size = (170, 210)
    objects = scattered(seed, size, largest)
    inference = DetectionInference(tile, overlap=0.3, whole=whole, batch_size=3)
    (found,) = inference(find_colours, paint(objects, size)[None], [size])
    assert as_set(found) == sorted((*map(float, each[:4]), each[4]) for each in objects)
    assert (found.scores.diff() <= 0).all()


@pytest.mark.parametrize(
    ("whole", "objects"),
    [
        (True, [(10, 10, 110, 110, 1), (30, 52, 44, 70, 1), (70, 70, 82, 82, 1)]),
        (False, [(0, 10, 25, 38, 1), (0, 20, 12, 35, 1), (100, 100, 130, 130, 1), (110, 112, 130, 130, 1)]),
    ],
)
def test_an_object_in_front_of_a_larger_one_of_its_class_is_kept(whole, objects):
    (found,) = DetectionInference(64, 0.5, whole)(find_colours, paint(objects, (130, 130))[None], [(130, 130)])
    assert as_set(found) == sorted((*map(float, each[:4]), each[4]) for each in objects)


@pytest.mark.parametrize("seed", range(6))
def test_a_detector_may_be_surer_of_parts_than_of_objects_that_another_tile_sees_whole(seed):
    size, objects = (150, 170), scattered(seed, (150, 170), (16, 16))
    whole = {(x2 - x1) * (y2 - y1) for x1, y1, x2, y2, _ in objects}

    def sure_of_parts(images, sizes):
        found = []
        for one in find_colours(images, sizes):
            areas = (one.boxes[:, 2:] - one.boxes[:, :2]).prod(1)
            scores = torch.tensor([0.1 if int(area) in whole else 0.9 for area in areas])
            found.append(one._replace(scores=scores))
        return found

    (found,) = DetectionInference(64, overlap=0.3)(sure_of_parts, paint(objects, size)[None], [size])
    assert as_set(found) == sorted((*map(float, each[:4]), each[4]) for each in objects)


def test_a_part_of_an_object_that_only_a_tile_sees_is_kept():
    objects = [(10, 10, 110, 40, 1)]

    def near_sighted(images, sizes):
        return [
            Detections(*(v[:0] for v in one)) if size[1] > 64 else one
            for one, size in zip(find_colours(images, sizes), sizes, strict=True)
        ]

    (found,) = DetectionInference(64, overlap=0.25)(near_sighted, paint(objects, (64, 130))[None], [(64, 130)])
    assert len(found.boxes)
    assert found.boxes[:, 0].min() == 10
    assert found.boxes[:, 2].max() == 110


def test_a_poor_box_does_not_swallow_a_part():
    whole = Detections(torch.tensor([[0.0, 0, 120, 60]]), torch.tensor([0.05]), torch.tensor([1]))

    def network(images, sizes):
        return [whole if size[1] > 64 else one for one, size in zip(find_colours(images, sizes), sizes, strict=True)]

    (found,) = DetectionInference(64, overlap=0.25)(
        network, paint([(10, 10, 110, 40, 1)], (64, 130))[None], [(64, 130)]
    )
    assert len(found.boxes) > 1


def test_without_tiles_and_flips_the_network_answers_itself():
    answer = [Detections(torch.rand(5, 4), torch.rand(5), torch.zeros(5, dtype=torch.long))]
    assert (
        DetectionInference(max_detections=2)(lambda images, sizes: answer, torch.rand(1, 3, 8, 8), [(8, 8)]) is answer
    )


def test_an_image_within_one_tile_is_shown_once_with_its_canvas():
    seen = []

    def network(images, sizes):
        seen.append((tuple(images.shape), sizes))
        return find_colours(images, sizes)

    images = torch.stack([paint([(2, 3, 12, 13, 1)], (40, 50)), paint([(20, 4, 30, 30, 2)], (40, 50))])
    found = DetectionInference(64)(network, images, [(40, 50), (36, 44)])
    assert seen == [((2, 3, 40, 50), [(40, 50), (36, 44)])]
    assert [as_set(one) for one in found] == [[(2, 3, 12, 13, 1)], [(20, 4, 30, 30, 2)]]


def test_tiles_cover_the_image_and_not_what_pads_it():
    seen = []

    def network(images, sizes):
        seen.append((len(images), *images.shape[-2:]))
        assert all(size == tuple(images.shape[-2:]) for size in sizes)
        assert (images[:, 2] == 0).all()
        return find_colours(images, sizes)

    image = torch.full((1, 3, 100, 120), 255, dtype=torch.uint8)
    image[0, :, :70, :90] = paint([(60, 40, 89, 69, 2)], (70, 90))
    (found,) = DetectionInference(64, overlap=0.5, whole=False, batch_size=2)(network, image, [(70, 90)])
    assert seen == [(2, 64, 64), (2, 64, 64)]
    assert as_set(found) == [(60, 40, 89, 69, 2)]


def test_no_image_depends_on_its_batch_mates():
    size = (100, 120)
    images = torch.stack([paint(scattered(seed, size, (30, 30)), size) for seed in range(3)])
    sizes = [size, (80, 64), (60, 110)]
    inference = DetectionInference(48, overlap=0.3)
    together = inference(find_colours, images, sizes)
    for row, found in enumerate(together):
        (alone,) = inference(find_colours, images[row, None], [sizes[row]])
        assert as_set(found) == as_set(alone)


def test_enlarged_tiles_show_the_network_more_pixels():
    seen = []

    def network(images, sizes):
        seen.append(tuple(images.shape[-2:]))
        return [Detections(torch.tensor([[8.0, 16, 24, 40]]), torch.tensor([0.5]), torch.tensor([0])) for _ in images]

    (found,) = DetectionInference(40, whole=False, scale=2)(network, torch.rand(1, 3, 40, 40), [(40, 40)])
    assert seen == [(80, 80)]
    assert as_set(found) == [(4, 8, 12, 20, 0)]


def test_the_best_are_kept_if_there_are_too_many():
    objects = scattered(3, (100, 100), (10, 10))
    all_of_them = DetectionInference(50)(find_colours, paint(objects, (100, 100))[None], [(100, 100)])[0]
    few = DetectionInference(50, max_detections=4)(find_colours, paint(objects, (100, 100))[None], [(100, 100)])[0]
    assert torch.equal(few.scores, all_of_them.scores[:4])


# Mirror images.


def one_sided(images, sizes):
    """Finds the brightest columns, with an error to the right, and sees the left half better."""
    found = []
    for image, (height, width) in zip(images, sizes, strict=True):
        bright = (image[0, 0, :width] > 0.5).nonzero()[:, 0]
        boxes = [[float(x) + 0.25, 0, float(x) + 3.5, height] for x in bright]
        scores = [0.9 - 0.5 * float(x) / width for x in bright]
        labels = torch.zeros(len(boxes), dtype=torch.long)
        found.append(Detections(torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores), labels))
    return found


@pytest.mark.parametrize("tile", [None, 24])
def test_a_mirror_image_gives_the_mirrored_boxes(tile):
    image = torch.zeros(1, 3, 10, 60)
    image[..., [5, 20, 33, 50]] = 1
    size = (10, 54)  # the rest is padding
    image[..., 54:] = 0.2
    mirrored = image.clone()
    mirrored[..., :54] = image[..., :54].flip(-1)
    inference = DetectionInference(tile, flip=True)
    (found,) = inference(one_sided, image, [size])
    (other,) = inference(one_sided, mirrored, [size])
    other = mirror_boxes(other, 54)
    assert len(found.boxes) >= 4
    order, others = found.boxes[:, 0].argsort(), other.boxes[:, 0].argsort()
    torch.testing.assert_close(found.boxes[order], other.boxes[others])
    torch.testing.assert_close(found.scores[order], other.scores[others])


def test_what_both_views_show_is_averaged_by_its_scores():
    one = Detections(torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]]), torch.tensor([0.9, 0.4]), torch.tensor([1, 1]))
    other = Detections(torch.tensor([[1.0, 0, 11, 10], [0, 0, 10, 10]]), torch.tensor([0.3, 0.8]), torch.tensor([1, 2]))
    found = average_views(one, other, 0.5)
    rows = {
        (tuple(b), label): s
        for b, s, label in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    }
    assert rows == {
        ((0.25, 0.0, 10.25, 10.0), 1): pytest.approx(0.6),
        ((50.0, 50.0, 60.0, 60.0), 1): pytest.approx(0.2),
        ((0.0, 0.0, 10.0, 10.0), 2): pytest.approx(0.4),
    }


def test_views_are_matched_one_to_one():
    draw = torch.Generator().manual_seed(0)
    corner = torch.rand(30, 2, generator=draw) * 40
    one = Detections(torch.cat([corner, corner + 15], 1), torch.rand(30, generator=draw), torch.arange(30) % 2)
    other = Detections(one.boxes + 2 * torch.rand(30, 4, generator=draw), torch.rand(30, generator=draw), one.labels)
    pairs = 0
    for i in range(30):  # by hand: who is whose best
        overlaps = [
            float(box_iou(one.boxes[[i]], other.boxes[[j]])) * (one.labels[i] == other.labels[j]) for j in range(30)
        ]
        j = max(range(30), key=overlaps.__getitem__)
        back = [
            float(box_iou(one.boxes[[k]], other.boxes[[j]])) * (one.labels[k] == other.labels[j]) for k in range(30)
        ]
        pairs += overlaps[j] > 0.5 and max(range(30), key=back.__getitem__) == i
    assert 0 < pairs < 30
    found = average_views(one, other, 0.5)
    assert len(found.boxes) == 60 - pairs
    assert float(found.scores.sum()) == pytest.approx(float(one.scores.sum() + other.scores.sum()) / 2, rel=1e-5)


@pytest.mark.parametrize("empty", [0, 1])
def test_what_one_view_alone_shows_counts_half(empty):
    views = [Detections(torch.rand(2, 4), torch.tensor([0.8, 0.2]), torch.tensor([0, 1]))] * 2
    views[empty] = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    torch.testing.assert_close(average_views(*views, 0.5).scores, torch.tensor([0.4, 0.1]))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"tile": 0}, "tile"),
        ({"overlap": 1.0}, "overlap"),
        ({"nms_iou": 0.0}, "nms_iou"),
        ({"max_detections": 0}, "max_detections"),
        ({"batch_size": 0}, "batch_size"),
        ({"scale": 0.0}, "scale"),
    ],
)
def test_options_without_sense_are_refused(options, named):
    with pytest.raises(ConfigError, match=named):
        DetectionInference(**options)
