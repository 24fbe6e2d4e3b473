"""The PyTorch system, reimplemented from its description, to compare ours with at run time.

Modules have the names of its checkpoints, so state dicts are interchangeable. Audio is [B, C, T].
"""

import functools
import warnings

import librosa
import numpy as np
import scipy.signal
import torch
import torch.nn.functional as F
from torch import nn


def weight_norm(module):
    with warnings.catch_warnings():
        # The checkpoints have the names of this form, weight_g and weight_v.
        warnings.filterwarnings("ignore", category=FutureWarning)
        return nn.utils.weight_norm(module)


class Snake(nn.Module):
    def __init__(self, channels, epsilon=1e-8):
        super().__init__()
        self.alpha, self.epsilon = nn.Parameter(torch.ones(1, channels, 1)), epsilon

    def forward(self, x):
        return x + torch.sin(self.alpha * x) ** 2 / (self.alpha + self.epsilon)


class ResidualUnit(nn.Module):
    def __init__(self, channels, kernel_size, dilation):
        super().__init__()
        padding = (kernel_size - 1) * dilation // 2
        self.block = nn.Sequential(
            Snake(channels),
            weight_norm(nn.Conv1d(channels, channels, kernel_size, dilation=dilation, padding=padding)),
            Snake(channels),
            weight_norm(nn.Conv1d(channels, channels, 1)),
        )

    def forward(self, x):
        return x + self.block(x)


class EncoderBlock(nn.Module):
    def __init__(self, c_in, c_out, stride, kernel_size, dilations):
        super().__init__()
        self.res_units = nn.ModuleList([ResidualUnit(c_in, kernel_size, d) for d in dilations])
        conv = nn.Conv1d(c_in, c_out, 2 * stride, stride=stride, padding=stride // 2)
        self.downsample = nn.Sequential(Snake(c_in), weight_norm(conv))

    def forward(self, x):
        for unit in self.res_units:
            x = unit(x)
        return self.downsample(x)


class DecoderBlock(nn.Module):
    def __init__(self, c_in, c_out, stride, kernel_size, dilations):
        super().__init__()
        conv = nn.ConvTranspose1d(c_in, c_out, 2 * stride, stride=stride, padding=stride // 2)
        self.upsample = nn.Sequential(Snake(c_in), weight_norm(conv))
        self.res_units = nn.ModuleList([ResidualUnit(c_out, kernel_size, d) for d in dilations])

    def forward(self, x):
        x = self.upsample(x)
        for unit in self.res_units:
            x = unit(x)
        return x


class Encoder(nn.Module):
    def __init__(self, in_channels, base, mults, strides, latent_dim, kernel_size, dilations):
        super().__init__()
        widths = [base] + [base * m for m in mults]
        self.input_conv = weight_norm(nn.Conv1d(in_channels, base, 7, padding=3))
        self.blocks = nn.ModuleList(
            [
                EncoderBlock(a, b, s, kernel_size, dilations)
                for a, b, s in zip(widths, widths[1:], strides, strict=False)
            ]
        )
        conv = nn.Conv1d(widths[-1], 2 * latent_dim, 3, padding=1)
        self.final_conv = nn.Sequential(Snake(widths[-1]), weight_norm(conv))

    def forward(self, x):
        x = self.input_conv(x)
        for block in self.blocks:
            x = block(x)
        return self.final_conv(x)


class Decoder(nn.Module):
    def __init__(self, out_channels, base, mults, strides, latent_dim, kernel_size, dilations):
        super().__init__()
        widths = [base * m for m in reversed(mults)] + [base]
        self.input_conv = weight_norm(nn.Conv1d(latent_dim, widths[0], 7, padding=3))
        self.blocks = nn.ModuleList(
            [
                DecoderBlock(a, b, s, kernel_size, dilations)
                for a, b, s in zip(widths, widths[1:], reversed(strides), strict=False)
            ]
        )
        conv = nn.Conv1d(base, out_channels, 7, padding=3)
        self.final_conv = nn.Sequential(Snake(base), weight_norm(conv))

    def forward(self, x):
        x = self.input_conv(x)
        for block in self.blocks:
            x = block(x)
        return self.final_conv(x)


class AudioVAE(nn.Module):
    def __init__(
        self,
        in_channels=2,
        base_channels=64,
        channel_mults=(1, 2, 4, 8),
        strides=(2, 4, 8, 8),
        latent_dim=64,
        kernel_size=7,
        dilations=(1, 3, 9),
    ):
        super().__init__()
        args = (base_channels, channel_mults, strides, latent_dim, kernel_size, dilations)
        self.latent_mean = nn.Parameter(torch.zeros(1, latent_dim, 1))
        self.latent_std = nn.Parameter(torch.ones(1, latent_dim, 1))
        self.encoder = Encoder(in_channels, *args)
        self.decoder = Decoder(in_channels, *args)

    def encode(self, x, eps=None):
        mean, logvar = self.encoder(x).chunk(2, dim=1)
        logvar = logvar.clamp(-20, 20)
        eps = torch.zeros_like(mean) if eps is None else eps
        z = (mean + eps * torch.exp(logvar / 2) - self.latent_mean) / (self.latent_std + 1e-8)
        return z, mean, logvar

    def decode(self, z):
        return self.decoder(z * (self.latent_std + 1e-8) + self.latent_mean)

    def forward(self, x, eps=None):
        z, mean, logvar = self.encode(x, eps)
        y = self.decode(z)[..., : x.shape[-1]]
        return F.pad(y, (0, x.shape[-1] - y.shape[-1])), z, mean, logvar


def stft(x, n_fft, hop, win=None, normalized=False):
    win = win or n_fft
    window = torch.hann_window(win, dtype=x.dtype, device=x.device)
    return torch.stft(x, n_fft, hop, win, window=window, normalized=normalized, return_complex=True)


class SpectrogramStack(nn.Module):
    def __init__(self, filters, in_channels):
        super().__init__()
        wide = min(4 * filters, 512)
        self.conv_layers = nn.ModuleList([weight_norm(nn.Conv2d(in_channels, filters, (3, 9), padding=(1, 4)))])
        for i, d in enumerate((1, 2, 4)):
            conv = nn.Conv2d(
                wide if i else filters, wide, (3, 9), stride=(2, 1), dilation=(1, d), padding=(1, 4 * d)
            )  # fmt: skip
            self.conv_layers.append(weight_norm(conv))
        self.conv_post = weight_norm(nn.Conv2d(wide, 1, (3, 3), padding=(1, 1)))

    def forward(self, x):
        maps = []
        for conv in self.conv_layers:
            x = F.leaky_relu(conv(x), 0.1)
            maps.append(x)
        return self.conv_post(x), maps


class STFTDiscriminator(SpectrogramStack):
    def __init__(self, filters, n_fft):
        super().__init__(filters, 2)
        self.n_fft = n_fft
        self.register_buffer("window", torch.hann_window(n_fft))

    def forward(self, x):
        s = stft(x, self.n_fft, self.n_fft // 4, normalized=True)
        return super().forward(torch.stack([s.real, s.imag], 1).transpose(2, 3))


class MultiScaleSTFTDiscriminator(nn.Module):
    def __init__(self, filters=32, n_ffts=(2048, 1024, 512, 256, 128)):
        super().__init__()
        self.discriminators = nn.ModuleList([STFTDiscriminator(filters, n) for n in n_ffts])

    def forward(self, x):
        pairs = [d(x[:, c]) for c in range(x.shape[1]) for d in self.discriminators]
        return [p[0] for p in pairs], [p[1] for p in pairs]


@functools.cache
def mel_filters(sample_rate, n_fft, n_mels):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Empty filters detected")
        return librosa.filters.mel(sr=sample_rate, n_fft=n_fft, n_mels=n_mels).T.copy()


class MelTransform(nn.Module):
    def __init__(self, sample_rate, n_fft, n_mels):
        super().__init__()
        self.n_fft = n_fft
        self.spectrogram = nn.Module()
        self.spectrogram.register_buffer("window", torch.hann_window(n_fft))
        self.mel_scale = nn.Module()
        self.mel_scale.register_buffer("fb", torch.tensor(mel_filters(sample_rate, n_fft, n_mels)))

    def forward(self, x):
        b, c, t = x.shape
        s = stft(x.reshape(b * c, t), self.n_fft, self.n_fft // 4).abs()
        mel = s.transpose(1, 2) @ self.mel_scale.fb
        return torch.log(mel + 1e-5).reshape(b, c, *mel.shape[1:])


class MelSTFTDiscriminator(SpectrogramStack):
    def __init__(self, filters, in_channels, sample_rate, n_fft, n_mels):
        super().__init__(filters, in_channels)
        self.mel_transform = MelTransform(sample_rate, n_fft, n_mels)

    def forward(self, x):
        return super().forward(self.mel_transform(x))


class MultiScaleMelSTFTDiscriminator(nn.Module):
    def __init__(
        self, filters=32, in_channels=2, n_ffts=(2048, 1024, 512, 256, 128), n_mels=(128, 128, 80, 64, 32),
        sample_rate=44100,
    ):  # fmt: skip
        super().__init__()
        self.discriminators = nn.ModuleList(
            [MelSTFTDiscriminator(filters, in_channels, sample_rate, n, m) for n, m in zip(n_ffts, n_mels, strict=True)]
        )

    def forward(self, x):
        pairs = [d(x) for d in self.discriminators]
        return [p[0] for p in pairs], [p[1] for p in pairs]


class ScaleDiscriminator(nn.Module):
    def __init__(self, in_channels):
        super().__init__()
        layers = ((16, 15, 1, 1), (64, 41, 4, 4), (256, 41, 4, 16), (256, 41, 4, 64), (512, 41, 4, 256), (512, 5, 1, 1))
        self.convs = nn.ModuleList()
        for c, k, s, g in layers:
            self.convs.append(weight_norm(nn.Conv1d(in_channels, c, k, s, padding=k // 2, groups=g)))
            in_channels = c
        self.conv_post = weight_norm(nn.Conv1d(in_channels, 1, 3, padding=1))

    def forward(self, x):
        maps = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
            maps.append(x)
        return self.conv_post(x), maps


class MultiScaleDiscriminator(nn.Module):
    def __init__(self, scales=(1, 2, 4), in_channels=2):
        super().__init__()
        self.scales = scales
        self.discriminators = nn.ModuleList([ScaleDiscriminator(in_channels) for _ in scales])

    def forward(self, x):
        pairs = [
            d(x if s == 1 else F.avg_pool1d(x, s, s)) for s, d in zip(self.scales, self.discriminators, strict=True)
        ]
        return [p[0] for p in pairs], [p[1] for p in pairs]


class PeriodDiscriminator(nn.Module):
    def __init__(self, period, in_channels, channels):
        super().__init__()
        self.period = period
        self.convs = nn.ModuleList()
        for i, c in enumerate(channels):
            stride = 1 if i == len(channels) - 1 else 3
            self.convs.append(weight_norm(nn.Conv2d(in_channels, c, (5, 1), (stride, 1), padding=(2, 0))))
            in_channels = c
        self.conv_post = weight_norm(nn.Conv2d(in_channels, 1, (3, 1), padding=(1, 0)))

    def forward(self, x):
        x = F.pad(x, (0, -x.shape[-1] % self.period), mode="reflect")
        x = x.reshape(*x.shape[:2], -1, self.period)
        maps = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
            maps.append(x)
        return self.conv_post(x), maps


class MultiPeriodDiscriminator(nn.Module):
    def __init__(self, periods=(2, 3, 5, 7, 11), in_channels=2, channels=(32, 128, 512, 1024, 1024)):
        super().__init__()
        self.discriminators = nn.ModuleList([PeriodDiscriminator(p, in_channels, channels) for p in periods])

    def forward(self, x):
        pairs = [d(x) for d in self.discriminators]
        return [p[0] for p in pairs], [p[1] for p in pairs]


class BandDiscriminator(nn.Module):
    def __init__(self):
        super().__init__()
        layers = ((32, 7, 2), (64, 5, 2), (128, 5, 2), (256, 5, 2), (256, 3, 1))
        self.convs, channels = nn.ModuleList(), 1
        for c, k, s in layers:
            conv = weight_norm(nn.Conv2d(channels, c, k, s, padding=k // 2))
            self.convs.append(nn.Sequential(conv, nn.LeakyReLU(0.2)))
            channels = c
        self.final_conv = weight_norm(nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, x):
        maps = []
        for conv in self.convs:
            x = conv(x)
            maps.append(x)
        maps.append(self.final_conv(x))
        return maps[-1].mean((2, 3)), maps


class BandSplitDiscriminator(nn.Module):
    def __init__(self, n_fft=2048, hop=512, bands=((0, 128), (128, 256), (256, 512), (512, 1025))):
        super().__init__()
        self.n_fft, self.hop, self.bands = n_fft, hop, bands
        self.band_discriminators = nn.ModuleList([BandDiscriminator() for _ in bands])

    def forward(self, x):
        s = stft(x[:, 0], self.n_fft, self.hop).abs()[:, None]
        pairs = [d(s[:, :, low:high]) for d, (low, high) in zip(self.band_discriminators, self.bands, strict=True)]
        return [p[0] for p in pairs], [p[1] for p in pairs]


class EnCodecDiscriminator(nn.Module):
    def __init__(
        self,
        stft_filters=32,
        in_channels=2,
        n_ffts=(2048, 1024, 512, 256, 128),
        msd_scales=(1, 2, 4),
        use_msd=True,
        mpd_periods=(2, 3, 5, 7, 11),
        mpd_channels=(32, 128, 512, 1024, 1024),
        use_mpd=True,
        use_mel_stft=False,
        mel_stft_filters=32,
        mel_stft_n_ffts=(2048, 1024, 512, 256, 128),
        mel_stft_n_mels=(128, 128, 80, 64, 32),
    ):
        super().__init__()
        self.msstft = MultiScaleSTFTDiscriminator(stft_filters, n_ffts)
        self.msd = MultiScaleDiscriminator(msd_scales, in_channels) if use_msd else None
        self.mpd = MultiPeriodDiscriminator(mpd_periods, in_channels, mpd_channels) if use_mpd else None
        self.mel_stft = (
            MultiScaleMelSTFTDiscriminator(mel_stft_filters, in_channels, mel_stft_n_ffts, mel_stft_n_mels)
            if use_mel_stft
            else None
        )

    def forward(self, x):
        logits, maps = [], []
        for part in (self.msstft, self.msd, self.mpd, self.mel_stft):
            if part is not None:
                part_logits, part_maps = part(x)
                logits += part_logits
                maps += part_maps
        return logits, maps


def hinge_d(real, fake):
    return sum(F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in zip(real, fake, strict=True)) / len(real)


def hinge_g(fake):
    return sum(-f.mean() for f in fake) / len(fake)


def feature_matching(real, fake):
    pairs = [(r, f) for rs, fs in zip(real, fake, strict=True) for r, f in zip(rs, fs, strict=True)]
    return sum((f - r.detach()).abs().mean() for r, f in pairs) / len(pairs)


def magnitude(x, n_fft, hop, win):
    s = stft(x, n_fft, hop, win)
    return torch.sqrt(torch.clamp(s.real**2 + s.imag**2, min=1e-8))


@functools.cache
def a_weighting_taps(sample_rate):
    f1, f2, f3, f4, gain = 20.598997, 107.65265, 737.86223, 12194.217, 1.9997
    num = [(2 * np.pi * f4) ** 2 * 10 ** (gain / 20), 0, 0, 0, 0]
    den = np.polymul([1, 4 * np.pi * f4, (2 * np.pi * f4) ** 2], [1, 4 * np.pi * f1, (2 * np.pi * f1) ** 2])
    den = np.polymul(np.polymul(den, [1, 2 * np.pi * f3]), [1, 2 * np.pi * f2])
    b, a = scipy.signal.bilinear(num, den, fs=sample_rate)
    w, h = scipy.signal.freqz(b, a, worN=512, fs=sample_rate)
    return scipy.signal.firls(101, w, np.abs(h), fs=sample_rate)


def a_weight(x, sample_rate):
    kernel = torch.tensor(a_weighting_taps(sample_rate), dtype=x.dtype, device=x.device).reshape(1, 1, -1)
    return F.conv1d(x[:, None], kernel, padding=50)[:, 0]


def multi_resolution_stft(
    x, y, ffts=(1024, 2048, 512), hops=(120, 240, 50), wins=(600, 1200, 240), w_sc=1, w_log=1, w_lin=0, weighted=None
):  # fmt: skip
    """x, y: [N, T]."""
    if weighted:
        x, y = a_weight(x, weighted), a_weight(y, weighted)
    total = 0
    for n, hop, win in zip(ffts, hops or [n // 4 for n in ffts], wins or ffts, strict=True):
        a, b = magnitude(x, n, hop, win), magnitude(y, n, hop, win)
        sc = ((b - a).norm(dim=(1, 2)) / (b.norm(dim=(1, 2)) + 1e-5)).mean()
        log = (torch.log(a + 1e-8) - torch.log(b + 1e-8)).abs().mean()
        total = total + w_sc * sc + w_log * log + w_lin * (a - b).abs().mean()
    return total / len(ffts)


def sum_and_difference_stft(x, y, **options):
    """x, y: [B, 2, T]."""
    parts = [multi_resolution_stft(x[:, 0] + s * x[:, 1], y[:, 0] + s * y[:, 1], **options) for s in (1, -1)]
    return sum(parts) / 2


def multi_scale_mel(x, y, ffts=(2048, 1024, 512), n_mels=(128, 64, 32), sample_rate=44100, convergence="item"):
    x, y = x.flatten(0, 1), y.flatten(0, 1)
    total = 0
    for n, m in zip(ffts, n_mels, strict=True):
        fb = torch.tensor(mel_filters(sample_rate, n, m), dtype=x.dtype, device=x.device)
        a, b = (magnitude(s, n, n // 4, n).transpose(1, 2) @ fb for s in (x, y))
        if convergence == "item":
            sc = ((b - a).norm(dim=(1, 2)) / (b.norm(dim=(1, 2)) + 1e-5)).mean()
        else:
            sc = (b - a).norm() / b.norm()
        total = total + sc + (torch.log(a) - torch.log(b)).abs().mean()
    return total / len(ffts)


def kl_divergence(mean, logvar, free_bits=0.0):
    kl = -0.5 * (1 + logvar - mean**2 - logvar.exp())
    return kl.clamp(min=free_bits).sum(dim=(1, 2)).mean()
