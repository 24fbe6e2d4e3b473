"""The autoencoders of other projects in torch, reimplemented, with the names of their checkpoints.

Audio is [B, C, T]. `make_foreign_golden.py` compares these modules with the projects' own.
"""

import math

import torch
from torch import nn
from torch_reference import Snake, weight_norm


def dac_snake(channels):
    return Snake(channels, epsilon=1e-9)


class SnakeBeta(nn.Module):
    """Of Stable Audio, with logarithms as parameters."""

    def __init__(self, channels, flat):
        super().__init__()
        shape = (channels,) if flat else (1, channels, 1)
        self.alpha, self.beta = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(shape))

    def forward(self, x):
        alpha, beta = (parameter.reshape(1, -1, 1).exp() for parameter in (self.alpha, self.beta))
        return x + torch.sin(alpha * x) ** 2 / (beta + 1e-9)


def conv(c_in, c_out, taps, dilation=1, bias=True):
    return weight_norm(nn.Conv1d(c_in, c_out, taps, dilation=dilation, padding=(taps - 1) * dilation // 2, bias=bias))


def down(c_in, c_out, stride):
    return weight_norm(nn.Conv1d(c_in, c_out, 2 * stride, stride=stride, padding=math.ceil(stride / 2)))


def up(c_in, c_out, stride):
    return weight_norm(nn.ConvTranspose1d(c_in, c_out, 2 * stride, stride=stride, padding=math.ceil(stride / 2)))


class Layers(nn.Module):
    """Layers in a Sequential called `word`, with or without a shortcut."""

    def __init__(self, word, *layers, shortcut=False):
        super().__init__()
        self.word, self.shortcut = word, shortcut
        setattr(self, word, nn.Sequential(*layers))

    def forward(self, x):
        y = getattr(self, self.word)(x)
        return x + y if self.shortcut else y


class Numbered(nn.Module):
    """The autoencoder of stable-audio-tools or DAC, whose layers are numbered."""

    def __init__(self, words, activation, channels, widths, decoder_widths, strides, latent, encoded, bias, tanh):
        super().__init__()
        encoder_word, decoder_word, inner = words

        def unit(width, dilation):
            first, second = conv(width, width, 7, dilation), conv(width, width, 1)
            return Layers(inner, activation(width), first, activation(width), second, shortcut=True)

        def units(width):
            return [unit(width, dilation) for dilation in (1, 3, 9)]

        encoder = [conv(channels, widths[0], 7)]
        for a, b, stride in zip(widths, widths[1:], strides, strict=False):
            encoder.append(Layers(inner, *units(a), activation(a), down(a, b, stride)))
        encoder += [activation(widths[-1]), conv(widths[-1], encoded, 3)]
        decoder_widths = decoder_widths[::-1]
        decoder = [conv(latent, decoder_widths[0], 7)]
        for a, b, stride in zip(decoder_widths, decoder_widths[1:], strides[::-1], strict=False):
            decoder.append(Layers(inner, activation(a), up(a, b, stride), *units(b)))
        decoder += [activation(decoder_widths[-1]), conv(decoder_widths[-1], channels, 7, bias=bias)]
        self.encoder = Layers(encoder_word, *encoder)
        self.decoder = Layers(decoder_word, *decoder, *([nn.Tanh()] if tanh else []))


def stable_audio_tools(base, mults, strides, latent, channels=2, snake=True, tanh=False):
    widths = [base * mult for mult in (1, *mults)]

    def activation(width):
        return SnakeBeta(width, flat=True) if snake else nn.ELU()

    return Numbered(
        ("layers",) * 3, activation, channels, widths, widths, strides, latent, 2 * latent, bias=False, tanh=tanh
    )


def dac(base, decoder_base, strides):
    powers = [2**i for i in range(len(strides) + 1)]
    widths, decoder_widths = ([width * power for power in powers] for width in (base, decoder_base))
    latent = widths[-1]
    return Numbered(
        ("block", "model", "block"), dac_snake, 1, widths, decoder_widths, strides, latent, latent, bias=True, tanh=True
    )


class OobleckUnit(nn.Module):
    def __init__(self, width, dilation):
        super().__init__()
        self.snake1, self.conv1 = SnakeBeta(width, flat=False), conv(width, width, 7, dilation)
        self.snake2, self.conv2 = SnakeBeta(width, flat=False), conv(width, width, 1)

    def forward(self, x):
        return x + self.conv2(self.snake2(self.conv1(self.snake1(x))))


class OobleckBlock(nn.Module):
    def __init__(self, a, b, stride, encodes):
        super().__init__()
        self.encodes = encodes
        self.snake1 = SnakeBeta(a, flat=False)
        setattr(self, "conv1" if encodes else "conv_t1", (down if encodes else up)(a, b, stride))
        for i, dilation in enumerate((1, 3, 9)):
            setattr(self, f"res_unit{i + 1}", OobleckUnit(a if encodes else b, dilation))

    def forward(self, x):
        units = nn.Sequential(self.res_unit1, self.res_unit2, self.res_unit3)
        return self.conv1(self.snake1(units(x))) if self.encodes else units(self.conv_t1(self.snake1(x)))


class OobleckHalf(nn.Module):
    def __init__(self, c_in, widths, strides, c_out, encodes):
        super().__init__()
        self.conv1 = conv(c_in, widths[0], 7)
        self.block = nn.ModuleList(
            OobleckBlock(a, b, stride, encodes) for a, b, stride in zip(widths, widths[1:], strides, strict=False)
        )
        self.snake1 = SnakeBeta(widths[-1], flat=False)
        self.conv2 = conv(widths[-1], c_out, 3 if encodes else 7, bias=encodes)

    def forward(self, x):
        x = self.conv1(x)
        for block in self.block:
            x = block(x)
        return self.conv2(self.snake1(x))


class Diffusers(nn.Module):
    """`AutoencoderOobleck`."""

    def __init__(self, base, mults, strides, latent, channels=2):
        super().__init__()
        widths = [base * mult for mult in (1, *mults)]
        self.encoder = OobleckHalf(channels, widths, strides, 2 * latent, encodes=True)
        self.decoder = OobleckHalf(latent, widths[::-1], strides[::-1], channels, encodes=False)


class DACVAE(nn.Module):
    """DACVAE, with stand-ins for the parts of its watermark, which `decode` does not use."""

    def __init__(self, base, decoder_base, strides, latent):
        super().__init__()
        plain = dac(base, decoder_base, strides)
        width = base * 2 ** len(strides)
        self.encoder = plain.encoder
        self.quantizer = nn.Module()
        self.quantizer.in_proj, self.quantizer.out_proj = conv(width, 2 * latent, 1), conv(latent, width, 1)
        first, *blocks, snake, last, _ = plain.decoder.model
        self.decoder = nn.Module()
        self.decoder.model = nn.ModuleList([first])
        for block in blocks:
            act, upsample, *units = block.block
            marks = [nn.Conv1d(2, 2, 3) for _ in range(4)]
            layers = [
                act,
                upsample,
                nn.ELU(),
                marks[0],
                *units[:2],
                *marks[1:3],
                units[2],
                nn.Identity(),
                nn.ELU(),
                marks[3],
            ]
            holder = nn.Module()
            holder.block = nn.ModuleList(layers)
            self.decoder.model.append(holder)
        mark = nn.Module()
        mark.encoder_block, mark.msg_processor = nn.Module(), nn.Embedding(4, 3)
        mark.encoder_block.pre = nn.Sequential(snake, last, nn.Tanh(), nn.Conv1d(1, 2, 7))
        self.decoder.wm_model = mark

    def parameters_of(self, audio):
        return self.quantizer.in_proj(self.encoder(audio))

    def decode(self, z):
        first, *blocks = self.decoder.model
        x = first(self.quantizer.out_proj(z))
        for holder in blocks:
            for i in (0, 1, 4, 5, 8):
                x = holder.block[i](x)
        return self.decoder.wm_model.encoder_block.pre[:3](x)
