"""Meta's published dense heads of DINOv2 in plain torch functions, from state dicts with the names of its files.

Maps are (B, C, h, w) and tokens (B, C), one of each per level.
"""

import torch
import torch.nn.functional as F


def conv(x, p, name, **options):
    return F.conv2d(x, p[f"{name}.weight"], p.get(f"{name}.bias"), **options)


def bins(raw, near, far):
    """Take the mean of evenly spread depths under ReLU + 0.1, normalised."""
    weights = torch.relu(raw) + 0.1
    weights = weights / weights.sum(dim=1, keepdim=True)
    return torch.einsum("bkhw,k->bhw", weights, torch.linspace(near, far, raw.shape[1]))[:, None]


def finish(depth, near, far, size):
    """Clamp, then resize to the image."""
    return F.interpolate(depth.clamp(near, far), size, mode="bilinear", align_corners=False)


def linear_segmentation(p, maps, size):
    """Normalise with the running statistics, classify, resize."""
    x = torch.cat(maps, dim=1)
    x = F.batch_norm(x, p["bn.running_mean"], p["bn.running_var"], p["bn.weight"], p["bn.bias"])
    return F.interpolate(conv(x, p, "conv_seg"), size, mode="bilinear", align_corners=False)


def linear_depth(p, maps, tokens, size, near, far):
    """Join every patch token with the class token, enlarge four times, classify into bins."""
    joined = [torch.cat([x, token[:, :, None, None].expand_as(x)], 1) for x, token in zip(maps, tokens, strict=True)]
    enlarged = [F.interpolate(x, [4 * side for side in x.shape[2:]], mode="bilinear") for x in joined]
    return finish(bins(conv(torch.cat(enlarged, 1), p, "conv_depth"), near, far), near, far, size)


def residual(x, p, name):
    y = conv(torch.relu(x), p, f"{name}.conv1.conv", padding=1)
    return x + conv(torch.relu(y), p, f"{name}.conv2.conv", padding=1)


def reassemble(p, i, x, token):
    """Read the class token into a level, narrow it, and bring it to 4, 2, 1 or 1/2 times its size."""
    name, (_, channels, height, width) = "reassemble_blocks", x.shape
    patches = x.flatten(2).permute(0, 2, 1)
    both = torch.cat([patches, token[:, None].expand_as(patches)], dim=2)
    layer = f"{name}.readout_projects.{i}.0"
    read = F.gelu(F.linear(both, p[f"{layer}.weight"], p[f"{layer}.bias"]))
    x = conv(read.permute(0, 2, 1).reshape(-1, channels, height, width), p, f"{name}.projects.{i}.conv")
    layer = f"{name}.resize_layers.{i}"
    if i < 2:
        return F.conv_transpose2d(x, p[f"{layer}.weight"], p[f"{layer}.bias"], stride=(4, 2)[i])
    return x if i == 2 else conv(x, p, layer, stride=2, padding=1)


def dpt_depth(p, maps, tokens, size, near, far):
    """Fuse the four levels from coarse to fine, doubled with aligned corners; ReLU and the nearest depth at the end."""
    levels = [conv(reassemble(p, i, maps[i], tokens[i]), p, f"convs.{i}.conv", padding=1) for i in range(4)]
    x = levels[3]
    for i, level in enumerate([None, *levels[2::-1]]):
        name = f"fusion_blocks.{i}"
        if level is not None:
            level = F.interpolate(level, x.shape[2:], mode="bilinear", align_corners=False)
            x = x + residual(level, p, f"{name}.res_conv_unit1")
        x = residual(x, p, f"{name}.res_conv_unit2")
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        x = conv(x, p, f"{name}.project.conv")
    x = torch.relu(conv(x, p, "project.conv", padding=1))
    x = conv(x, p, "conv_depth.head.0", padding=1)
    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
    x = conv(torch.relu(conv(x, p, "conv_depth.head.2", padding=1)), p, "conv_depth.head.4")
    return finish(torch.relu(x) + near, near, far, size)


def draw(shapes):
    """Make up parameters of those shapes, about as large as trained ones."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(shape, generator=generator) / max(1, shape[1:].numel()) ** 0.5
        for name, shape in ((name, torch.Size(shape)) for name, shape in shapes.items())
    }


def with_bias(shapes):
    """Add a bias to every weight."""
    biases = {name.replace("weight", "bias"): shape[:1] for name, shape in shapes.items()}
    return {**shapes, **biases}


def draw_linear_segmentation(channels, classes):
    state = draw(with_bias({"conv_seg.weight": (classes, channels, 1, 1)}))
    state |= draw({"bn.weight": (channels,), "bn.bias": (channels,), "bn.running_mean": (channels,)})
    state["bn.running_var"] = 1 + torch.rand(channels, generator=torch.Generator().manual_seed(4))
    return {**state, "bn.num_batches_tracked": torch.tensor(40000)}


def draw_linear_depth(channels, count=256):
    return draw(with_bias({"conv_depth.weight": (count, channels, 1, 1)}))


def draw_dpt_depth(depth, channels):
    widths, block = [depth // 8, depth // 4, depth // 2, depth], "reassemble_blocks"
    shapes = {f"{block}.projects.{i}.conv.weight": (width, depth, 1, 1) for i, width in enumerate(widths)}
    shapes |= {f"{block}.readout_projects.{i}.0.weight": (depth, 2 * depth) for i in range(4)}
    shapes[f"{block}.resize_layers.0.weight"] = (widths[0], widths[0], 4, 4)
    shapes[f"{block}.resize_layers.1.weight"] = (widths[1], widths[1], 2, 2)
    shapes[f"{block}.resize_layers.3.weight"] = (depth, depth, 3, 3)
    shapes |= {f"fusion_blocks.{i}.project.conv.weight": (channels, channels, 1, 1) for i in range(4)}
    shapes["project.conv.weight"] = (channels, channels, 3, 3)
    shapes["conv_depth.head.0.weight"] = (channels // 2, channels, 3, 3)
    shapes["conv_depth.head.2.weight"] = (32, channels // 2, 3, 3)
    shapes["conv_depth.head.4.weight"] = (1, 32, 1, 1)
    bare = {f"convs.{i}.conv.weight": (channels, width, 3, 3) for i, width in enumerate(widths)}
    units = [f"fusion_blocks.{i}.res_conv_unit{j}" for i in range(4) for j in (1, 2) if (i, j) != (0, 1)]
    bare |= {f"{unit}.conv{k}.conv.weight": (channels, channels, 3, 3) for unit in units for k in (1, 2)}
    return draw({**with_bias(shapes), **bare})


def save(state, path):
    """Write what mmcv writes: under a prefix, with what training needed beside it."""
    keys = {f"decode_head.{name}": tensor for name, tensor in state.items()}
    keys["decode_head.loss_decode.0.weight"] = torch.ones(3)
    torch.save({"meta": {"epoch": 24, "CLASSES": ("wall",)}, "state_dict": keys, "optimizer": {"lr": 1e-3}}, path)
    return path
