"""What a linear layer on frozen features learns from a folder of 200 frames, against one depth for every pixel.

    python benchmarks/depth_folder.py

Scenes are rendered and written as a user's folder: photographs beside 16-bit millimetres, 0 where there is no reading.
Then `fit --config experiments/lite0_depth.yaml --data.root FOLDER` is run as it stands, and its figure printed beside
that of the median depth of the training frames. `--root` takes a folder of your own instead.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from framework.cli.main import main as framework
from framework.data.depth_folder import DepthFolder
from framework.data.scenes import render_scene
from framework.metrics.depth import DepthMetrics

EXPERIMENT = Path(__file__).parents[1] / "experiments/lite0_depth.yaml"
SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}
LIMIT = 0.60


def write_folder(root: Path, frames: int, size: tuple[int, int]) -> None:
    """Render frames into `SPLIT/rgb` and `SPLIT/depth`; a tenth of the readings are lost, in blocks."""
    rng, index = np.random.default_rng(0), 0
    for split, share in SHARES.items():
        for name in ("rgb", "depth"):
            (root / split / name).mkdir(parents=True)
        for _ in range(round(share * frames)):
            scene = render_scene(11, index, size)
            depth = np.round(1000 * scene.depth).astype(np.uint16)
            for top, left in rng.integers(0, size, (12, 2)):
                depth[top : top + size[0] // 10, left : left + size[1] // 10] = 0
            Image.fromarray(scene.image).save(root / split / f"rgb/{index:04d}.png")
            Image.fromarray(depth).save(root / split / f"depth/{index:04d}.png")
            index += 1


def score_median(root: Path) -> dict[str, float]:
    """Score the median of the training readings as the depth of every pixel, on the best split that is held out."""
    data = DepthFolder(str(root))
    splits, scores = data.splits(), {}
    depths = [splits["train"].read(index)["depth"].flatten()[::17] for index in range(len(splits["train"]))]
    everything = torch.cat([torch.as_tensor(depth) for depth in depths])
    median = everything[everything > 0].median()
    for split in ("val", "test"):
        if split in splits:
            metrics = DepthMetrics(data.depth_range)
            for index in range(len(splits[split])):
                target = torch.as_tensor(splits[split].read(index)["depth"])
                metrics.update(median.expand(target.shape), target, torch.zeros(()))
            scores[split] = float(metrics.compute()["image/abs_rel"])
    return scores


def main() -> None:
    """Print both figures and their ratio; the exit code is 1 if it is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="a folder as DepthFolder takes it, in place of a rendered one")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--size", type=int, nargs=2, default=(240, 320), help="height and width")
    options, extra = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        root = (options.root or Path(folder, "rooms")).resolve()
        if options.root is None:
            write_folder(root, options.frames, (options.size[0], options.size[1]))
        os.chdir(folder)
        if code := framework(["fit", "--config", str(EXPERIMENT), "--data.root", str(root), *extra]):
            sys.exit(code)
        (path,) = Path("runs").glob("lite0_depth/*/metrics.json")
        figures = json.loads(path.read_text())
        ratios = []
        for split, constant in score_median(root).items():
            ours = figures[f"{split}/image/abs_rel"]
            ratios.append(ours / constant)
            print(f"{split}: AbsRel {ours:.3f}, of the training median {constant:.3f}, ratio {ratios[-1]:.3f}")
    sys.exit(int(max(ratios) > LIMIT))


if __name__ == "__main__":
    main()
