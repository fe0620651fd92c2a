"""DINOv2 in numpy, float64, one image at a time, from a state dict with Meta's names."""

import math

import numpy as np
from PIL import Image
from scipy.special import erf


def layer_norm(x, weight, bias):
    """Normalise every token (N, D)."""
    centred = x - x.mean(1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-6) * weight + bias


def attention(x, qkv, qkv_bias, proj, proj_bias, heads):
    """Attend from every token (N, D) to all, head by head."""
    q, k, v = np.split(x @ qkv.T + qkv_bias, 3, axis=1)
    size = x.shape[1] // heads
    mixed = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = q[:, part] @ k[:, part].T / math.sqrt(size)
        scores = np.exp(scores - scores.max(1, keepdims=True))
        mixed.append(scores / scores.sum(1, keepdims=True) @ v[:, part])
    return np.concatenate(mixed, 1) @ proj.T + proj_bias


def mlp(x, p, name):
    """Apply the gated MLP where its weights are there, else the plain one."""
    if f"{name}.w12.weight" in p:
        gate, value = np.split(x @ p[f"{name}.w12.weight"].T + p[f"{name}.w12.bias"], 2, axis=1)
        return gate / (1 + np.exp(-gate)) * value @ p[f"{name}.w3.weight"].T + p[f"{name}.w3.bias"]
    hidden = x @ p[f"{name}.fc1.weight"].T + p[f"{name}.fc1.bias"]
    hidden = hidden * (1 + erf(hidden / math.sqrt(2))) / 2
    return hidden @ p[f"{name}.fc2.weight"].T + p[f"{name}.fc2.bias"]


def keys(distance, a=-0.75):
    """Weigh a sample at that distance: the cubic convolution kernel of Keys (1981)."""
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def rows(old, new, factor):
    """Give the matrix (new, old) that resamples a line without antialias, enlarged `factor` times, edges repeated."""
    matrix = np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) / factor - 0.5
        for j in range(math.floor(centre) - 1, math.floor(centre) + 3):
            matrix[i, min(max(j, 0), old - 1)] += keys(centre - j)
    return matrix


def positions(grid, height, width, registers):
    """Resize (37, 37, D) to (height, width, D) as Meta does: shifted, or with registers, by Pillow's antialiasing."""
    old = len(grid)
    if (height, width) == (old, old):
        return grid
    if registers:
        channels = [Image.fromarray(channel.astype(np.float32)) for channel in np.moveaxis(grid, 2, 0)]
        return np.stack([np.asarray(x.resize((width, height), Image.Resampling.BICUBIC)) for x in channels], 2)
    down = rows(old, height, (height + 0.1) / old)
    across = rows(old, width, (width + 0.1) / old)
    return np.einsum("ha,wb,abd->hwd", down, across, grid)


def dinov2(image, state, heads, layers, norm=True):
    """Compute, for a normalised image (C, H, W), per layer a map (D, H / 14, W / 14) and the prefix tokens (P, D)."""
    p = {name: np.asarray(value, np.float64) for name, value in state.items()}
    height, width = image.shape[1] // 14, image.shape[2] // 14
    filters, bias = p["patch_embed.proj.weight"], p["patch_embed.proj.bias"]
    grid = positions(p["pos_embed"][0, 1:].reshape(37, 37, -1), height, width, "register_tokens" in p)
    tokens = [p["cls_token"][0] + p["pos_embed"][0, :1]]
    if "register_tokens" in p:
        tokens.append(p["register_tokens"][0])
    for i in range(height):
        for j in range(width):
            patch = image[:, 14 * i : 14 * (i + 1), 14 * j : 14 * (j + 1)].astype(np.float64)
            tokens.append((filters.reshape(len(bias), -1) @ patch.ravel() + bias + grid[i, j])[None])
    x = np.concatenate(tokens)
    outputs = []
    for i in range(max(layers) + 1):
        b = f"blocks.{i}"
        y = layer_norm(x, p[f"{b}.norm1.weight"], p[f"{b}.norm1.bias"])
        names = ("qkv.weight", "qkv.bias", "proj.weight", "proj.bias")
        x = x + p[f"{b}.ls1.gamma"] * attention(y, *(p[f"{b}.attn.{name}"] for name in names), heads)
        y = layer_norm(x, p[f"{b}.norm2.weight"], p[f"{b}.norm2.bias"])
        x = x + p[f"{b}.ls2.gamma"] * mlp(y, p, f"{b}.mlp")
        if i in layers:
            y = layer_norm(x, p["norm.weight"], p["norm.bias"]) if norm else x
            count = len(x) - height * width
            outputs.append((y[count:].T.reshape(-1, height, width), y[:count]))
    return outputs
