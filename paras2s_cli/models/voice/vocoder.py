"""BigVGAN (arXiv 2206.04658): mel frames to a waveform by transposed convolutions, and blocks whose activation is periodic."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paras2s_cli.models.voice.config import VocoderConfig

_TAPS = 12
"""Length of the low-pass filters, which come with the checkpoint: half the band, gain 1."""


class LowPass(nn.Module):
    """A filter's taps."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.empty(1, 1, _TAPS))


class DownSample(nn.Module):
    """A filter's taps where the published checkpoint has them."""

    def __init__(self) -> None:
        super().__init__()
        self.lowpass = LowPass()


class SnakeBeta(nn.Module):
    """x + sin(alpha x)^2 / beta, alpha and beta a channel and stored as logarithms."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.empty(channels)), nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        # x: [B, C, T]
        alpha, beta = self.alpha.exp()[:, None], self.beta.exp()[:, None]
        return x + (alpha * x).sin().square() / (beta + 1e-9)


class Activation(nn.Module):
    """Snake at twice the rate: what it makes above the band is filtered away before it can fold back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.act = SnakeBeta(channels)
        self.upsample, self.downsample = LowPass(), DownSample()

    def forward(self, x: Tensor) -> Tensor:
        # x: [B, C, T]; each channel is a signal of its own to the filters
        b, c, t = x.shape
        side = _TAPS // 2 - 1
        x = F.pad(x.reshape(b * c, 1, t), (side, side), mode="replicate")
        x = 2 * F.conv_transpose1d(x, self.upsample.filter, stride=2)  # [B * C, 1, 2 T + 30]
        x = self.act(x[..., 3 * side : -3 * side].view(b, c, 2 * t))
        x = F.pad(x.reshape(b * c, 1, 2 * t), (side, side + 1), mode="replicate")
        return F.conv1d(x, self.downsample.lowpass.filter, stride=2).view(b, c, t)


class Block(nn.Module):
    """Pairs of convolutions, the first of each dilated, with what went in added to what comes out."""

    def __init__(self, channels: int, kernel: int, dilations: list[int]) -> None:
        super().__init__()
        half = kernel // 2
        self.convs1 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, dilation=d, padding=d * half) for d in dilations)
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=half) for _ in dilations)
        self.activations = nn.ModuleList(Activation(channels) for _ in range(2 * len(dilations)))

    def forward(self, x: Tensor) -> Tensor:
        for first, second, before, between in zip(self.convs1, self.convs2, self.activations[::2], self.activations[1::2], strict=True):
            x = x + second(between(first(before(x))))
        return x


class Vocoder(nn.Module):
    """Under the names of the published checkpoint, but that a convolution's weight is one tensor here and two there (`folder`).

    Channels halve with every rise of the rate.
    """

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.upsample_initial_channel
        self.conv_pre = nn.Conv1d(config.num_mels, channels, 7, padding=3)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
            up = nn.ConvTranspose1d(channels, channels // 2, kernel, rate, padding=(kernel - rate) // 2)
            channels //= 2
            self.ups.append(nn.Sequential(up))
            for size, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True):
                self.resblocks.append(Block(channels, size, dilations))
        self.activation_post = Activation(channels)
        self.conv_post = nn.Conv1d(channels, 1, 7, padding=3, bias=False)

    def forward(self, mel: Tensor) -> Tensor:
        """[B, T, num_mels] log mel -> [B, T * hop_size] in -1..1."""
        x = self.conv_pre(mel.transpose(1, 2))
        count = len(self.config.resblock_kernel_sizes)
        for i, up in enumerate(self.ups):
            x = up(x)
            x = sum(block(x) for block in self.resblocks[i * count : (i + 1) * count]) / count
        return self.conv_post(self.activation_post(x)).clamp(-1, 1)[:, 0]
