"""DINOv2: Meta's self-supervised plain ViTs of patch 14, under Meta's own parameter names.

Oquab et al., arXiv 2304.07193; registers: Darcet et al., arXiv 2309.16588; repository facebookresearch/dinov2.
"""

import re
from collections import OrderedDict
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.backbone import Backbone, Features, Level
from framework.errors import ConfigError, WeightsError, suggest
from framework.weights import load_strictly, read_weights

PATCH = 14  # pixels
GRID = 37  # patches along each side of the 518x518 images that the position embedding is made for
SERVER = "https://dl.fbaipublicfiles.com/dinov2"
Variant = Literal["vits14", "vitb14", "vitl14", "vitg14", "vits14_reg", "vitb14_reg", "vitl14_reg", "vitg14_reg"]


@dataclass(frozen=True)
class Shape:
    """What tells the variants apart.

    Args:
        width: Channels of a token.
        depth: Blocks.
        heads: Attention heads of a block.
        registers: Register tokens.
        gated: Whether the MLP is a SwiGLU.
    """

    width: int
    depth: int
    heads: int
    registers: int = 0
    gated: bool = False


SHAPES = {
    "vits14": Shape(384, 12, 6),
    "vitb14": Shape(768, 12, 12),
    "vitl14": Shape(1024, 24, 16),
    "vitg14": Shape(1536, 40, 24, gated=True),
    "vits14_reg": Shape(384, 12, 6, registers=4),
    "vitb14_reg": Shape(768, 12, 12, registers=4),
    "vitl14_reg": Shape(1024, 24, 16, registers=4),
    "vitg14_reg": Shape(1536, 40, 24, registers=4, gated=True),
}
# Hugging Face's names, of its files and of its modules since version 5, and Meta's. Parts are joined afterwards.
RENAMES = (
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.(?:attention\.)?([qkv])(?:uery|ey|alue|_proj)\.", r".attn.\1."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.mlp\.gate_proj\.", ".mlp.w1."),
    (r"\.mlp\.up_proj\.", ".mlp.w2."),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.(?:weights_out|down_proj)\.", ".mlp.w3."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)


class DINOv2(Backbone):
    """Meta's DINOv2: a plain ViT of patch 14, whose frozen features serve most tasks.

    Every level is the output of a block at stride 14, by default after the final norm. Its prefix is the class token,
    then the registers, if any.

    Args:
        variant: Size, s (22 million parameters), b (86), l (304) or g (1,136); `_reg` has four register tokens
            and maps with fewer artefacts.
        pretrained: Take Meta's weights from its server or from torch.hub's cache.
        weights: A file to take the weights from, in the layout of Meta, timm or Hugging Face.
        layers: Blocks to return: how many of the last, or a list of indices, ascending, negative ones counted from the
            end; null: four evenly spread. Those after the last one are not built. Meta's depth heads read the four of
            null, but of l [4, 11, 17, 23], where null begins with 5; its segmentation heads read the last 1 or 4.
        in_channels: Channels of the images; pretrained filters are repeated or summed over them.
        drop_path: Rate of stochastic depth in training, in [0, 1): that of the last block, rising from 0 at the first.
        norm: Apply the final norm to every level. Meta's classifiers and segmentation heads read levels with it, its
            depth heads without (false): then it is not built, and left out of a file.

    Raises:
        ConfigError: There is no such variant, layer or rate, or both `pretrained` and `weights` are given.
        WeightsError: The weights cannot be had, or do not fit.
    """

    weights_licence: ClassVar[str] = "Apache-2.0"

    def __init__(
        self,
        variant: Variant = "vits14",
        pretrained: bool = False,
        weights: str | PathLike[str] | None = None,
        layers: int | list[int] | None = None,
        in_channels: int = 3,
        drop_path: float = 0.0,
        norm: bool = True,
    ) -> None:
        _check_choice(variant, pretrained, weights, drop_path)
        shape = SHAPES[variant]
        taps = _taps(layers, variant, shape.depth)
        state, source = None, f"Meta's {variant}" if weights is None else weights
        if pretrained or weights is not None:
            state = _to_meta(_download(variant) if weights is None else read_weights(weights))
            _check_variant(state, variant, source)
        super().__init__(
            levels=[Level(shape.width, PATCH)] * len(taps),
            multiple=PATCH,
            prefix_tokens=1 + shape.registers,
            in_channels=in_channels,
        )
        self.taps = taps
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.register_tokens = nn.Parameter(torch.zeros(1, shape.registers, shape.width)) if shape.registers else None
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + GRID**2, shape.width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(in_channels, shape.width, PATCH, PATCH)})
        rates = [drop_path * index / max(1, shape.depth - 1) for index in range(taps[-1] + 1)]
        self.blocks = nn.ModuleList(Block(shape, rate) for rate in rates)
        self.norm = nn.LayerNorm(shape.width, eps=1e-6) if norm else nn.Identity()
        if state is None:
            self._initialise()
        else:
            self._load(state, source, shape.depth)

    @classmethod
    def published(cls, *_: Any, variant: Variant = "vits14", in_channels: int = 3, **others: Any) -> nn.Module:
        """Build all blocks at random weights: Meta publishes, and counts, the network without a classifier."""
        return cls(variant, layers=1, in_channels=in_channels)

    def extract(self, images: Tensor) -> Features:
        """Compute the features of normalised images (B, C, H, W), float."""
        height, width = images.shape[-2] // PATCH, images.shape[-1] // PATCH
        x = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)  # (B, N, width)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self._positions(height, width)
        if self.register_tokens is not None:  # without positions
            x = torch.cat([x[:, :1], self.register_tokens.expand(x.shape[0], -1, -1), x[:, 1:]], 1)
        features = Features([], [])
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.taps:
                prefix, patches = self.norm(x).tensor_split([self.prefix_tokens], 1)
                features.prefix.append(prefix)
                features.maps.append(patches.transpose(1, 2).unflatten(2, (height, width)))
        return features

    def stages(self) -> list[list[nn.Parameter]]:
        """Split the parameters into stem, then blocks, the final norm with the last."""
        stem = [self.cls_token, self.register_tokens, self.pos_embed, *self.patch_embed.parameters()]
        blocks = [list(block.parameters()) for block in self.blocks]
        blocks[-1].extend(self.norm.parameters())
        return [[parameter for parameter in stem if parameter is not None], *blocks]

    def _positions(self, height: int, width: int) -> Tensor:
        """Resize the position embedding to a grid of patches: (1, 1 + height * width, channels)."""
        if (height, width) == (GRID, GRID):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].float().transpose(1, 2).reshape(1, -1, GRID, GRID)
        if self.register_tokens is not None:
            grid = F.interpolate(grid, (height, width), mode="bicubic", antialias=True)
        else:  # Meta's hub shifts the grid of those without registers
            scale = ((height + 0.1) / GRID, (width + 0.1) / GRID)
            grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2).type_as(self.pos_embed)], 1)

    def _initialise(self) -> None:
        """Draw random weights as Meta does before training."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for token in (self.cls_token, self.register_tokens):
            if token is not None:
                nn.init.normal_(token, std=1e-6)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def _load(self, state: dict[str, Tensor], source: str | PathLike[str], depth: int) -> None:
        """Load weights of all blocks, or of those built, in Meta's layout.

        Raises:
            WeightsError: They do not fit.
        """
        filters = state.get("patch_embed.proj.weight")
        if filters is not None and filters.ndim == 4 and filters.shape[1] == 3 and self.in_channels != 3:
            copies = filters.repeat(1, -(-self.in_channels // 3), 1, 1)[:, : self.in_channels] * (3 / self.in_channels)
            adapted = filters.sum(1, keepdim=True) if self.in_channels == 1 else copies  # equal channels: equal sum
            state = {**state, "patch_embed.proj.weight": adapted}
        after = range(len(self.blocks), depth)
        unused = {f"blocks.{index}.{leaf}" for index in after for leaf in self.blocks[0].state_dict()}
        unused |= {"mask_token", "head.weight", "head.bias"}
        unused |= {"norm.weight", "norm.bias"}  # where the final norm is not built
        load_strictly(self, state, source, may_exceed=unused)


class Block(nn.Module):
    """A transformer block: attention, then MLP, each normalised before, scaled after, and added.

    Args:
        shape: Variant it belongs to.
        drop_path: Rate of stochastic depth, in [0, 1).
    """

    def __init__(self, shape: Shape, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width, eps=1e-6)
        self.attn = Attention(shape.width, shape.heads)
        self.ls1 = LayerScale(shape.width)
        self.norm2 = nn.LayerNorm(shape.width, eps=1e-6)
        hidden = 4 * shape.width
        layers = {"fc1": nn.Linear(shape.width, hidden), "act": nn.GELU(), "fc2": nn.Linear(hidden, shape.width)}
        self.mlp = SwiGLU(shape.width) if shape.gated else nn.Sequential(OrderedDict(layers))
        self.ls2 = LayerScale(shape.width)
        self.drop_prob = drop_path  # as timm's DropPath calls it: under this name a schedule finds it

    def forward(self, x: Tensor) -> Tensor:
        """Compute new tokens (B, N, width) from tokens (B, N, width)."""
        x = x + self._drop(self.ls1(self.attn(self.norm1(x))))
        return x + self._drop(self.ls2(self.mlp(self.norm2(x))))

    def _drop(self, x: Tensor) -> Tensor:
        """Leave out what some samples would add, and scale the rest, so that the mean stays."""
        if not self.training or not self.drop_prob:
            return x
        keep = torch.rand(x.shape[0], 1, 1, device=x.device) >= self.drop_prob
        return x * keep / (1 - self.drop_prob)


class Attention(nn.Module):
    """Multi-head self-attention.

    Args:
        width: Channels of a token.
        heads: Parts that they are split into.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens (B, N, width)."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()  # (B, heads, N, -1)
        mixed: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return mixed


class SwiGLU(nn.Module):
    """A gated MLP (Shazeer, arXiv 2002.05202) of about as many parameters as the plain one.

    Args:
        width: Channels of a token.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = -(-(4 * width * 2 // 3) // 8) * 8
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform every token (B, N, width) by itself."""
        gate, value = self.w12(x).chunk(2, -1)
        transformed: Tensor = self.w3(F.silu(gate) * value)
        return transformed


class LayerScale(nn.Module):
    """One learned factor per channel (Touvron et al., arXiv 2103.17239).

    Args:
        width: Channels of a token.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Scale tokens (B, N, width)."""
        return x * self.gamma


def _check_choice(variant: str, pretrained: bool, weights: str | PathLike[str] | None, drop_path: float) -> None:
    """Refuse what no network needs to be built for."""
    if variant not in SHAPES:
        raise ConfigError(f"DINOv2 has no variant {variant}, {suggest(variant, SHAPES)}")
    if pretrained and weights is not None:
        raise ConfigError(f"{variant}: give pretrained: true or weights: {weights}, not both")
    if not 0 <= drop_path < 1:
        raise ConfigError(f"drop_path is a rate in [0, 1), not {drop_path}")


def _taps(layers: int | list[int] | None, variant: str, depth: int) -> list[int]:
    """Return the absolute indices of the blocks to return."""
    if layers is None:
        return [(i + 1) * depth // 4 - 1 for i in range(4)]
    if isinstance(layers, int):
        taps = list(range(depth - layers, depth))
    else:
        taps = [index + depth if index < 0 else index for index in layers]
    if not taps or taps != sorted(set(taps)) or taps[0] < 0 or taps[-1] >= depth:
        raise ConfigError(
            f"layers {layers} of {variant}: give how many of the last blocks, 1 to {depth}, or a list of ascending "
            f"indices in 0..{depth - 1} (-1: the last)"
        )
    return taps


def _download(variant: str) -> dict[str, Tensor]:
    """Return Meta's weights from torch.hub's cache or from Meta's server.

    Raises:
        WeightsError: They are at neither, or the file in the cache is damaged.
    """
    size = variant.removesuffix("_reg")
    name = f"dinov2_{size}{'_reg4' if '_reg' in variant else ''}_pretrain.pth"
    address, cache = f"{SERVER}/dinov2_{size}/{name}", Path(torch.hub.get_dir(), "checkpoints")
    if (cache / name).is_file():
        return read_weights(cache / name)
    try:
        state: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
            address, map_location="cpu", progress=False, file_name=name, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"no weights for DINOv2's {variant}: {error}\n"
            f"  neither from {address} nor in the cache, {cache}\n"
            "  with a network, run it once more there and copy the cache, or download that file and set weights: PATH\n"
            "  without, set pretrained: false"
        ) from error
    return state


def _to_meta(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the layouts of Hugging Face and timm, told by their names, to Meta's; leave others as they are."""
    if "embeddings.cls_token" in state:
        for pattern, name in RENAMES:
            state = {re.sub(pattern, name, key): tensor for key, tensor in state.items()}
        state = _join(_join(state, ("attn.q", "attn.k", "attn.v"), "attn.qkv"), ("mlp.w1", "mlp.w2"), "mlp.w12")
    if "reg_token" in state and "pos_embed" in state:  # timm has added the class token's position to the token
        grid = state["pos_embed"]
        state = {"register_tokens" if key == "reg_token" else key: tensor for key, tensor in state.items()}
        state["pos_embed"] = torch.cat([grid.new_zeros(1, 1, grid.shape[-1]), grid], 1)
    first, last = (state.get(f"blocks.0.mlp.{name}.weight") for name in ("fc1", "fc2"))
    if first is not None and last is not None and first.shape[0] == 2 * last.shape[-1]:
        state = {key.replace(".mlp.fc1.", ".mlp.w12.").replace(".mlp.fc2.", ".mlp.w3."): x for key, x in state.items()}
    return state


def _join(state: dict[str, Tensor], parts: tuple[str, ...], whole: str) -> dict[str, Tensor]:
    """Stack the rows of layers that Meta has as one."""
    joined = dict(state)
    for key in state:
        names = [key.replace(f".{parts[0]}.", f".{part}.") for part in parts]
        if len(set(names)) == len(parts) and all(name in state for name in names):
            joined[key.replace(f".{parts[0]}.", f".{whole}.")] = torch.cat([joined.pop(name) for name in names])
    return joined


def _check_variant(state: dict[str, Tensor], variant: str, source: str | PathLike[str]) -> None:
    """Refuse weights that are known to be of another variant or family.

    Raises:
        WeightsError: They are.
    """
    patches = next((x for key, x in state.items() if "patch_embed" in key and x.ndim == 4), None)
    if patches is None:
        return
    if patches.shape[-1] != PATCH:
        raise WeightsError(
            f"{source} is of a ViT of patch {patches.shape[-1]}, and DINOv2 has patch {PATCH}: it is no DINOv2 (DINOv3 "
            "and most other ViTs have 16); use Timm or HuggingFace for it"
        )
    blocks = {key.split(".")[1] for key in state if re.match(r"blocks\.\d+\.ls1\.gamma$", key)}
    found = (patches.shape[0], len(blocks), "register_tokens" in state)
    known = {(shape.width, shape.depth, shape.registers > 0): name for name, shape in SHAPES.items()}
    right = known.get(found, variant)  # what is not known is left to the comparison of keys
    if right != variant:
        raise WeightsError(f"{source} holds the weights of {right}, not of {variant}: set variant: {right}")
