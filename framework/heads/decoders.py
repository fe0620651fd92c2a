"""Dense heads on the decoders of segmentation-models-pytorch (SMP)."""
# mypy: disable-error-code="import-untyped"

from collections.abc import Sequence
from typing import Any, Literal

from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.base.modules import Conv2dReLU
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.pspnet.decoder import PSPDecoder
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.decoders.unetplusplus.decoder import UnetPlusPlusDecoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn

from framework.backbone import Features, Level
from framework.errors import ConfigError
from framework.heads.dense import CoarseHead, require_fraction, require_positive
from framework.necks import Pyramid

Norm = Literal["batch", "instance", "none"]
_NORMS: dict[Norm, Any] = {  # as SMP spells them
    "batch": "batchnorm",
    "instance": {"type": "instancenorm", "affine": True},
    "none": "identity",
}


class _Decoder(CoarseHead):
    """A neck, an SMP decoder, and a convolution to the outputs.

    SMP's decoders index features by stride 1, 2, 4, ... with the image first; a stride that the neck does not
    give is a map of zero channels.
    """

    def __init__(
        self, neck: Pyramid, decoder: nn.Module, width: int, outputs: int, kernel_size: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        require_fraction(dropout=dropout)
        self.multiple = neck.multiple
        self.used = neck.used
        self.neck = neck
        self.decoder = decoder
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(width, outputs, kernel_size, padding=kernel_size // 2)
        initialize_decoder(self.decoder)
        initialize_head(self.classify)

    def coarse(self, features: Features, size: tuple[int, int]) -> Tensor:
        """Compute (B, outputs, h, w) at the resolution of the decoder."""
        maps = self.neck(features.maps, size)
        finest, (batch, _, height, width) = self.neck.levels[0].stride, maps[0].shape
        empty = [
            maps[0].new_empty(batch, 0, height * finest // stride, width * finest // stride)
            for stride in _missing(self.neck)
        ]
        raw: Tensor = self.classify(self.dropout(self.decoder([*empty, *maps])))
        return raw


class UNet(_Decoder):
    """Skip connections at every stride, joined from coarse to fine. Ronneberger et al., arXiv 1505.04597.

    Args:
        channels: Width of the five blocks, from stride 16 to the image's own size.
        norm: Normalisation after each convolution; `instance` or `none` for batches of one or two.
        attention: `scse` puts squeeze-and-excitation, spatial and by channel, into every block; it needs 16
            channels everywhere.
        interpolation: How maps are enlarged between blocks.
        dropout: Probability of dropping a whole channel before the last convolution, in [0, 1).

    Raises:
        ConfigError: An option is out of range.
    """

    build: Any = UnetDecoder

    def __init__(
        self,
        levels: tuple[Level, ...],
        prefix_tokens: int,
        outputs: int,
        *,
        channels: tuple[int, int, int, int, int] = (256, 128, 64, 32, 16),
        norm: Norm = "batch",
        attention: Literal["scse"] | None = None,
        interpolation: Literal["nearest", "bilinear"] = "nearest",
        dropout: float = 0.0,
    ) -> None:
        require_positive(channels=min(channels))
        neck = Pyramid(levels, _unet_strides(levels))
        narrowest = min(*channels, *(level.channels for level in neck.levels))
        if attention and narrowest < 16:
            raise ConfigError(f"attention {attention} needs at least 16 channels everywhere, got {narrowest}")
        decoder = self.build(
            _channels(neck),
            channels,
            n_blocks=len(channels),
            use_norm=_NORMS[norm],
            attention_type=attention,
            interpolation_mode=interpolation,
        )
        *_, last = decoder.blocks.children()
        last.attention1 = nn.Identity()  # it is for a skip connection: never called here, and dead weights break DDP
        super().__init__(neck, decoder, channels[-1], outputs, kernel_size=3, dropout=dropout)


class UNetPlusPlus(UNet):
    """U-Net with dense blocks on the skip connections; it has U-Net's options. Zhou et al., arXiv 1807.10165."""

    build: Any = UnetPlusPlusDecoder


class FPN(_Decoder):
    """Top-down pyramid whose levels are enlarged to stride 4 and merged. Kirillov et al., arXiv 1901.02446.

    Args:
        pyramid_channels: Width of the pyramid.
        segmentation_channels: Width of each level's branch to stride 4, divisible by 32 (its group norm).
        dropout: Probability of dropping a whole channel of the merged map, in [0, 1).
        merge: How the four branches are merged.

    Raises:
        ConfigError: An option is out of range.
    """

    def __init__(
        self,
        levels: tuple[Level, ...],
        prefix_tokens: int,
        outputs: int,
        *,
        pyramid_channels: int = 256,
        segmentation_channels: int = 128,
        dropout: float = 0.2,
        merge: Literal["add", "cat"] = "add",
    ) -> None:
        require_positive(pyramid_channels=pyramid_channels, segmentation_channels=segmentation_channels)
        require_fraction(dropout=dropout)
        if segmentation_channels % 32:
            raise ConfigError(f"segmentation_channels must be divisible by 32, got {segmentation_channels}")
        neck = Pyramid(levels)
        decoder = FPNDecoder(
            _channels(neck),
            pyramid_channels=pyramid_channels,
            segmentation_channels=segmentation_channels,
            dropout=dropout,
            merge_policy=merge,
        )
        super().__init__(neck, decoder, decoder.out_channels, outputs)


class DeepLabV3Plus(_Decoder):
    """Atrous pyramid pooling of the deepest level, joined with stride 4. Chen et al., arXiv 1802.02611.

    The branch that pools the whole image has no batch norm, which cannot train on batches of one: its map is 1x1.

    Args:
        channels: Width of the decoder.
        atrous_rates: Dilations of the three pyramid branches.
        output_stride: Stride of the deepest level; one that has another is resampled to it, so a dilated backbone
            serves best.
        separable: Depthwise separable convolutions in the pyramid.
        dropout: Probability of dropping a value after the pyramid, in [0, 1).

    Raises:
        ConfigError: An option is out of range.
    """

    def __init__(
        self,
        levels: tuple[Level, ...],
        prefix_tokens: int,
        outputs: int,
        *,
        channels: int = 256,
        atrous_rates: tuple[int, int, int] = (12, 24, 36),
        output_stride: Literal[8, 16] = 16,
        separable: bool = True,
        dropout: float = 0.5,
    ) -> None:
        require_positive(channels=channels, atrous_rates=min(atrous_rates))
        require_fraction(dropout=dropout)
        neck = Pyramid(levels, (4, output_stride))
        decoder = DeepLabV3PlusDecoder(
            _channels(neck),
            encoder_depth=5,
            out_channels=channels,
            atrous_rates=atrous_rates,
            output_stride=output_stride,
            aspp_separable=separable,
            aspp_dropout=dropout,
        )
        pooling = decoder.aspp[0].convs[-1]
        pooling[1], pooling[2] = nn.Conv2d(neck.levels[-1].channels, channels, 1), nn.Identity()
        super().__init__(neck, decoder, channels, outputs)


class PSPNet(_Decoder):
    """Pooling of the deepest level over a grid of 1, 2, 3 and 6. Zhao et al., arXiv 1612.01105.

    Args:
        channels: Width of the map after pooling.
        output_stride: Stride of the deepest level; one that has another is resampled to it.
        norm: Normalisation after each convolution; `instance` or `none` for batches of one or two.
        dropout: Probability of dropping a whole channel before the last convolution, in [0, 1).

    Raises:
        ConfigError: An option is out of range, or the deepest level's channels are not divisible by 4.
    """

    def __init__(
        self,
        levels: tuple[Level, ...],
        prefix_tokens: int,
        outputs: int,
        *,
        channels: int = 512,
        output_stride: Literal[8, 16, 32] = 8,
        norm: Norm = "batch",
        dropout: float = 0.2,
    ) -> None:
        require_positive(channels=channels)
        require_fraction(dropout=dropout)
        neck = Pyramid(levels, (output_stride,))
        if neck.levels[-1].channels % 4:
            raise ConfigError(
                f"PSPNet splits the deepest level into four, so its channels must be divisible by 4, "
                f"and this backbone's are {neck.levels[-1].channels}: choose another head or backbone"
            )
        decoder = PSPDecoder(_channels(neck), use_norm=_NORMS[norm], out_channels=channels, dropout=dropout)
        super().__init__(neck, decoder, channels, outputs, kernel_size=3)


class UPerNet(_Decoder):
    """Pyramid pooling of the deepest level under a feature pyramid. Xiao et al., arXiv 1807.10221.

    The branch that pools the whole image has no batch norm, which cannot train on batches of one: its map is 1x1.

    Args:
        channels: Width of the decoder.
        dropout: Probability of dropping a whole channel before the last convolution, in [0, 1).

    Raises:
        ConfigError: An option is out of range.
    """

    def __init__(
        self, levels: tuple[Level, ...], prefix_tokens: int, outputs: int, *, channels: int = 256, dropout: float = 0.0
    ) -> None:
        require_positive(channels=channels)
        neck = Pyramid(levels)
        decoder = UPerNetDecoder(_channels(neck), decoder_channels=channels)
        decoder.psp.blocks[0][1] = Conv2dReLU(neck.levels[-1].channels, channels, kernel_size=1, use_norm="identity")
        super().__init__(neck, decoder, channels, outputs, dropout=dropout)


class SegFormer(_Decoder):
    """Every level projected, enlarged to stride 4 and fused by one 1x1 convolution. Xie et al., arXiv 2105.15203.

    Args:
        channels: Width of the projections.
        dropout: Probability of dropping a whole channel before the last convolution, in [0, 1).

    Raises:
        ConfigError: An option is out of range.
    """

    def __init__(
        self, levels: tuple[Level, ...], prefix_tokens: int, outputs: int, *, channels: int = 256, dropout: float = 0.0
    ) -> None:
        require_positive(channels=channels)
        neck = Pyramid(levels)
        decoder = SegformerDecoder(_channels(neck), segmentation_channels=channels)
        super().__init__(neck, decoder, channels, outputs, dropout=dropout)


def _unet_strides(levels: Sequence[Level]) -> tuple[int, ...]:
    """Return the strides of a U-Net's skip connections: stride 2 only where the backbone has it."""
    return (2, 4, 8, 16, 32) if any(level.stride == 2 for level in levels) else (4, 8, 16, 32)


def _missing(neck: Pyramid) -> list[int]:
    """Return the strides below 4 that the neck does not give."""
    return [stride for stride in (1, 2) if stride < neck.levels[0].stride]


def _channels(neck: Pyramid) -> list[int]:
    """Return the channels by stride 1, 2, 4, ... as SMP's decoders want them."""
    return [0] * len(_missing(neck)) + [level.channels for level in neck.levels]
