"""Score the median depth of the training parts of the embedded pictures, predicted everywhere, as a Markdown table.

python benchmarks/stereo_baseline.py
"""

import numpy as np
from numpy.typing import NDArray

from framework.data.sample_stereo import SampleStereo


def constant_scores(truth: NDArray[np.float32], depth: float) -> tuple[float, float, float]:
    """Return AbsRel, RMSE in metres and delta1 of one depth everywhere, against depths (H, W), 0 unknown."""
    known = truth[truth > 0].astype(np.float64)
    ratio = np.maximum(depth / known, known / depth)
    return (
        float(np.mean(np.abs(depth - known) / known)),
        float(np.sqrt(np.mean((depth - known) ** 2))),
        float(np.mean(ratio < 1.25)),
    )


def main() -> None:
    """Print the table: each figure is the mean over the images of the split."""
    print("| data.picture | training median | split | AbsRel | RMSE (m) | δ1 |")
    print("|---|---:|---|---:|---:|---:|")
    for picture in ("both", "motorcycle", "bin"):
        data = SampleStereo(picture=picture)
        truths = {
            name: [samples.read(i)["depth"].numpy() for i in range(len(samples))]
            for name, samples in data.splits().items()
        }
        readings = np.concatenate([truth[truth > 0] for truth in truths["train"]])
        median = float(np.median(readings))
        for split in ("val", "test"):
            scores = np.mean([constant_scores(truth, median) for truth in truths[split]], axis=0)
            print(f"| {picture} | {median:.3f} m | {split} | " + " | ".join(f"{score:.3f}" for score in scores) + " |")


if __name__ == "__main__":
    main()
