"""Networks side by side: what each costs, as counted, and how fast it is, as measured."""

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import torch
from torch import nn

from framework.architectures import Architecture
from framework.backbone import Backbone
from framework.cost import activation_bytes, flop_count, parameter_count, receptive_field
from framework.errors import ConfigError

ROUNDS = 5  # of measuring, in each of which every network has its turn
TURN = 0.1  # seconds that a network's turn takes at least, for throughput and for latency each


@dataclass(frozen=True, slots=True)
class Cost:
    """What a network costs for one image, as counted.

    Args:
        size: Side of the image in pixels.
        parameters: Parameters.
        multiply_adds: Multiplications with the addition of their product, of convolutions, matrix products, attention.
        activations: Bytes kept for the backward pass, in fp32.
    """

    size: int
    parameters: int
    multiply_adds: int
    activations: int


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a network is, as measured.

    Args:
        throughput: Images per second, in batches.
        latency: Milliseconds for one image, median.
    """

    throughput: float
    latency: float


@dataclass(slots=True)
class Row:
    """One network in a comparison.

    Args:
        name: What it is called.
        plugin: The plugin and its arguments, as on the command line.
        build: Builds the network as its paper counts it, or the backbone alone.
        alone: Whether it is the backbone alone.
        published: What is known of it, if it is one of `architectures.yaml`.
        cost: As counted; None if it does not take images of that size.
        receptive_field: Input pixels across that one cell of its coarsest map depends on; `all`: the whole image.
        speed: As measured, if it was.
    """

    name: str
    plugin: str
    build: Callable[[], nn.Module]
    alone: bool = False
    published: Architecture | None = None
    cost: Cost | None = None
    receptive_field: int | Literal["all"] | None = None
    speed: Speed | None = None


def count(net: nn.Module, size: int) -> Cost | None:
    """Count what a network costs for one image of `size` by `size` pixels; None if it does not take such images.

    Args:
        net: On the meta device, where nothing is computed, or any other. A backbone's image is as much larger as it
            has to be.
        size: Pixels.
    """
    if isinstance(net, Backbone):
        size = -(-size // net.multiple) * net.multiple
    parameter = next(net.parameters(), None)
    images = torch.zeros(2, in_channels(net), size, size, device=parameter.device if parameter is not None else "cpu")
    try:
        flops = flop_count(net, images[:1])
        kept = activation_bytes(net, images) // len(images)  # two: batch norm refuses one cell of one image
    except (AssertionError, RuntimeError, ValueError):  # what networks raise for a size that they do not take
        return None
    return Cost(size, parameter_count(net), flops // 2, kept)


def in_channels(net: nn.Module) -> int:
    """Return the channels of the images that a network takes, as its first convolution says."""
    if isinstance(net, Backbone):
        return net.in_channels
    first = next((module for module in net.modules() if isinstance(module, nn.Conv2d)), None)
    return first.in_channels if first is not None else 3


def reach(backbone: Backbone) -> int | Literal["all"]:
    """Count the receptive field of a backbone's coarsest map, in pixels; `all`: the whole image.

    Args:
        backbone: On the CPU; it is left in eval mode.
    """
    backbone.eval()
    stride = backbone.levels[-1].stride
    field = receptive_field(
        lambda images: backbone(images).maps[-1], stride, backbone.multiple, in_channels=backbone.in_channels
    )
    return "all" if field is None else field


def measure(rows: Sequence[Row], batch: int) -> str:
    """Measure every network that takes its images, side by side, and say on what.

    All are in memory at once, and take turns, so that a machine that slows down slows them all. In fp32 and eval mode,
    channels last in memory for convolutional networks, after two passes to warm up.

    Args:
        rows: Networks, counted before; their `speed` is filled in.
        batch: Images at once for the throughput.

    Returns:
        The device, its threads, and what was measured, in a line.

    Raises:
        ConfigError: They do not fit into memory.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    counted = [(row, row.cost) for row in rows if row.cost is not None]
    needed, free = 4 * sum(cost.parameters for _, cost in counted), _free_memory(device)
    if needed > free:
        raise ConfigError(
            f"--measure holds all networks in memory at once: {needed / 1e9:.1f} GB of {free / 1e9:.1f} GB free; "
            "name fewer"
        )
    runs = [_prepare(row, cost.size, batch, device) for row, cost in counted]
    times: list[tuple[list[float], list[float]]] = [([], []) for _ in runs]
    with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
        for one, many in runs:
            for _ in range(2):
                one()
                many()
        for _ in range(ROUNDS):
            for (one, many), (single, whole) in zip(runs, times, strict=True):
                single += _turn(one, device)
                whole += _turn(many, device)
    for (row, _), (single, whole) in zip(counted, times, strict=True):
        row.speed = Speed(throughput=batch / median(whole), latency=1000 * median(single))
    threads = "" if device.type == "cuda" else f", {torch.get_num_threads()} threads"
    return f"{_device_name(device)}{threads}, torch {torch.__version__}, fp32, throughput in batches of {batch}"


def _prepare(
    row: Row, size: int, batch: int, device: torch.device
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Build a network, and return what runs it on one image and on a batch."""
    with torch.device(device):
        net = row.build().eval()
    convolutional = sum(isinstance(module, nn.Conv2d) for module in net.modules()) > 1  # a ViT has one
    layout = torch.channels_last if convolutional else torch.contiguous_format
    net = net.to(memory_format=layout)
    images = torch.rand(batch, in_channels(net), size, size, device=device).to(memory_format=layout)
    return lambda: net(images[:1]), lambda: net(images)


def _turn(run: Callable[[], object], device: torch.device) -> list[float]:
    """Run something for a while, and return the seconds of each run."""
    seconds: list[float] = []
    while sum(seconds) < TURN:
        _finish(device)
        began = time.perf_counter()
        run()
        _finish(device)
        seconds.append(time.perf_counter() - began)
    return seconds


def _finish(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _free_memory(device: torch.device) -> int:
    """Return the free memory of a device, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    for line in meminfo.read_text().splitlines() if meminfo.exists() else ():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _device_name(device: torch.device) -> str:
    """Return the name of a device, as its maker calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
