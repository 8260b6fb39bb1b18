"""A generator of faces: StyleGAN3, configurations T and R, at any resolution.

Karras, Aittala, Laine, Härkönen, Hellsten, Lehtinen, Aila: "Alias-Free Generative Adversarial
Networks", NeurIPS 2021 (arXiv:2106.12423). Written from the paper, for making pictures only: what
training alone needs is left out, and so are classes. Plain torch operations in
fp32, on a CPU or a GPU. Arguments, parameters and buffers have the official names, so that NVIDIA's
weights fit once they are converted (convert_stylegan3.py).

Where shapes change, a name ends in its axes: N pictures, Z and W numbers of a latent code and of
what the mapping makes of it, L layers, C channels (I of the layer before, O of this one), H rows, X
columns, K filter taps, 2 or 3 coordinates.
"""

import math
from dataclasses import dataclass

import numpy as np
import scipy.signal
import scipy.special
import torch
import torch.nn.functional as F
from torch import nn

# What each argument may be: between these, so that no description asks for absurd amounts.
_WHOLE = {
    "z_dim": (1, 4096),
    "w_dim": (1, 4096),
    "c_dim": (0, 2**20),
    "img_resolution": (16, 2048),
    "img_channels": (3, 3),
    "channel_base": (1, 2**20),
    "channel_max": (1, 4096),
    "num_layers": (2, 64),
    "num_critical": (1, 63),
    "margin_size": (0, 128),
    "conv_kernel": (1, 7),
    "filter_size": (1, 32),
    "lrelu_upsampling": (2, 8),
    "use_radial_filters": (0, 1),
    "num_fp16_res": (0, 64),
    "mapping_kwargs.num_layers": (1, 64),
}
_REAL = {
    "first_cutoff": (0.25, 1024),
    "first_stopband": (0.25, 2048),
    "last_stopband_rel": (1, 4),
    "output_scale": (1e-6, 1e6),
    "conv_clamp": (1e-6, 1e6),
    "magnitude_ema_beta": (0, 1),
    "mapping_kwargs.lr_multiplier": (1e-6, 1e6),
    "mapping_kwargs.w_avg_beta": (0, 1),
}


def build_generator(arguments: dict, weights: dict[str, torch.Tensor]) -> "Generator":
    """A generator on the CPU, ready to make pictures, from the arguments of `Generator` and a whole
    state dict in fp32, whose tensors it uses.

    Raises ValueError, in a sentence without a full stop, where an argument is unknown, missing or
    out of range, and where the weights are another network's.
    """
    check_arguments(arguments)
    try:
        with torch.device("meta"):  # nothing is drawn or allocated before the weights are known
            generator = Generator(**arguments)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"the arguments make no generator ({error})") from None
    wanted = {name: value.shape for name, value in generator.state_dict().items()}
    for name in sorted(wanted.keys() ^ weights.keys()):
        raise ValueError(f"{name} is {'missing' if name in wanted else 'unknown'} in the weights")
    for name, shape in wanted.items():
        if weights[name].shape != shape:
            raise ValueError(
                f"{name} is {tuple(weights[name].shape)} in the weights, not {tuple(shape)}"
            )
    generator.load_state_dict(weights, assign=True)
    return generator.eval().requires_grad_(False)


def check_arguments(arguments: dict) -> None:
    """Raise ValueError, in a sentence, unless each of the arguments is a number in its range."""
    inner = arguments.get("mapping_kwargs") or {}
    outer = {name: value for name, value in arguments.items() if name != "mapping_kwargs"}
    if not isinstance(inner, dict):
        raise ValueError("mapping_kwargs is no dictionary")
    for name, value in {**outer, **{f"mapping_kwargs.{key}": inner[key] for key in inner}}.items():
        kind, limits = (int, _WHOLE[name]) if name in _WHOLE else (int | float, _REAL.get(name))
        if limits is None:
            raise ValueError(f"the argument {name[:100]!r} is unknown")
        if name == "conv_clamp" and value is None:
            continue
        if not isinstance(value, kind) or not limits[0] <= value <= limits[1]:
            number = "whole number" if kind is int else "number"
            raise ValueError(f"{name} is not a {number} from {limits[0]} to {limits[1]}")


class Generator(nn.Module):
    """A latent code → a picture.

    T is the default; R has `conv_kernel=1` and `use_radial_filters=True` (and twice the channels).
    `channel_base`, `channel_max`, `num_layers`, `num_critical`, `first_cutoff`, `first_stopband`,
    `last_stopband_rel` and `margin_size` fix sizes, cutoffs and channels of the layers (section
    3.2, "Flexible layer specifications"; cutoffs in cycles per picture). `magnitude_ema_beta` and
    `num_fp16_res` concern training and NVIDIA's own fp16; they are taken so that every official
    network's arguments are, and change nothing.
    """

    def __init__(
        self,
        *,
        z_dim: int,
        w_dim: int,
        img_resolution: int,
        img_channels: int = 3,
        c_dim: int = 0,
        mapping_kwargs: dict | None = None,
        channel_base: int = 32768,
        channel_max: int = 512,
        num_layers: int = 14,
        num_critical: int = 2,
        first_cutoff: float = 2,
        first_stopband: float = 2**2.1,
        last_stopband_rel: float = 2**0.3,
        margin_size: int = 10,
        output_scale: float = 0.25,
        conv_kernel: int = 3,
        filter_size: int = 6,
        lrelu_upsampling: int = 2,
        use_radial_filters: bool = False,
        conv_clamp: float | None = 256,
        magnitude_ema_beta: float = 0.999,
        num_fp16_res: int = 4,
    ):
        super().__init__()
        if c_dim:
            raise ValueError("generators that want a class are not known here")
        layers = layer_sizes(
            img_resolution,
            img_channels,
            channel_base,
            channel_max,
            num_layers,
            num_critical,
            first_cutoff,
            first_stopband,
            last_stopband_rel,
            margin_size,
        )
        self.z_dim = z_dim
        self.img_resolution = img_resolution
        self.mapping = Mapping(z_dim, w_dim, len(layers) + 1, **(mapping_kwargs or {}))
        self.synthesis = Synthesis(
            w_dim,
            layers,
            output_scale,
            conv_kernel=conv_kernel,
            filter_size=filter_size,
            lrelu_upsampling=lrelu_upsampling,
            use_radial_filters=use_radial_filters,
            conv_clamp=conv_clamp,
        )

    def forward(self, z: torch.Tensor, truncation: float = 1.0) -> torch.Tensor:
        """(N, z_dim) from a standard normal → (N, img_channels, img_resolution, img_resolution),
        which is meant for -1…1 and not clamped. `truncation` 0 is the average face, 1 all that
        the network learned."""
        # Else GPUs convolve with TF32's 10 bits, and errors pass 1e-3.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return self.synthesis(self.mapping(z, truncation))


@dataclass(frozen=True)
class Signal:
    """What flows between two layers: rate and size in samples per picture and across the canvas
    (picture and margin), cutoff and transition half-width in cycles per picture."""

    channels: int
    size: int
    rate: int
    cutoff: float
    half_width: float
    is_critically_sampled: bool


def layer_sizes(
    img_resolution: int,
    img_channels: int,
    channel_base: int,
    channel_max: int,
    num_layers: int,
    num_critical: int,
    first_cutoff: float,
    first_stopband: float,
    last_stopband_rel: float,
    margin_size: int,
) -> list[Signal]:
    """What each of the `num_layers` layers and ToRGB, the last, puts out.

    Cutoff and stopband grow geometrically until the last `num_critical` layers, which are
    critically sampled: their cutoff is half the resolution (section 3.2, "Flexible layer
    specifications").
    """
    if num_critical >= num_layers:
        raise ValueError("num_critical is not below num_layers")
    last_cutoff = img_resolution / 2
    last_stopband = last_cutoff * last_stopband_rel
    progress = np.minimum(np.arange(num_layers + 1) / (num_layers - num_critical), 1)
    cutoffs = first_cutoff * (last_cutoff / first_cutoff) ** progress
    stopbands = first_stopband * (last_stopband / first_stopband) ** progress
    rates = np.exp2(np.ceil(np.log2(np.minimum(stopbands * 2, img_resolution))))
    half_widths = np.maximum(stopbands, rates / 2) - cutoffs
    sizes = rates + 2 * margin_size
    sizes[-2:] = img_resolution  # the margin is cropped before the colours
    channels = np.rint(np.minimum(channel_base / 2 / cutoffs, channel_max))
    if channels.min() < 1:
        raise ValueError("channel_base is too small for the resolution")
    channels[-1] = img_channels
    return [
        Signal(
            int(channels[index]),
            int(sizes[index]),
            int(rates[index]),
            float(cutoffs[index]),
            float(half_widths[index]),
            is_critically_sampled=index >= num_layers - num_critical,
        )
        for index in range(num_layers + 1)
    ]


class FullyConnected(nn.Module):
    """A linear layer whose weights have variance 1 and are scaled where they are used, so that all
    learn equally fast (Karras et al., "Progressive Growing of GANs", ICLR 2018, section 4.1)."""

    def __init__(self, inputs: int, outputs: int, bias: list[float], lr_multiplier: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr_multiplier)
        self.bias = nn.Parameter(torch.tensor(bias).expand(outputs) / lr_multiplier)
        self.weight_gain = lr_multiplier / math.sqrt(inputs)
        self.bias_gain = lr_multiplier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight * self.weight_gain, self.bias * self.bias_gain)


class Mapping(nn.Module):
    """z → w: two layers (eight in StyleGAN2), and the truncation towards the average w."""

    def __init__(
        self,
        z_dim: int,
        w_dim: int,
        num_ws: int,
        num_layers: int = 2,
        lr_multiplier: float = 0.01,
        w_avg_beta: float = 0.998,  # of training
    ):
        super().__init__()
        self.num_ws = num_ws
        self.num_layers = num_layers
        for index in range(num_layers):
            layer = FullyConnected(z_dim if index == 0 else w_dim, w_dim, [0.0], lr_multiplier)
            self.add_module(f"fc{index}", layer)
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(self, z_NZ: torch.Tensor, truncation: float = 1.0) -> torch.Tensor:
        """(N, z_dim) → (N, num_ws, w_dim): the same w for each layer."""
        w_NW = z_NZ * (z_NZ.square().mean(1, keepdim=True) + 1e-8).rsqrt()  # still z's width
        for index in range(self.num_layers):
            w_NW = F.leaky_relu(self.get_submodule(f"fc{index}")(w_NW), 0.2) * math.sqrt(2)
        w_NW = self.w_avg.lerp(w_NW, truncation)
        w_NLW = w_NW[:, None].expand(-1, self.num_ws, -1)
        return w_NLW


class Synthesis(nn.Module):
    """w → picture: Fourier features, then the layers one after the other."""

    def __init__(self, w_dim: int, signals: list[Signal], output_scale: float, **layer_arguments):
        super().__init__()
        self.output_scale = output_scale
        self.input = FourierInput(w_dim, signals[0])
        self.layer_names = []
        for index, (before, after) in enumerate(
            zip([signals[0], *signals[:-1]], signals, strict=True)
        ):
            is_to_rgb = index == len(signals) - 1
            layer = Layer(w_dim, before, after, is_to_rgb, **layer_arguments)
            self.layer_names.append(f"L{index}_{after.size}_{after.channels}")
            self.add_module(self.layer_names[-1], layer)

    def forward(self, w_NLW: torch.Tensor) -> torch.Tensor:
        """(N, num_ws, w_dim) → (N, img_channels, img_resolution, img_resolution)."""
        x_NCHX = self.input(w_NLW[:, 0])
        for index, name in enumerate(self.layer_names, start=1):
            x_NCHX = self.get_submodule(name)(x_NCHX, w_NLW[:, index])
        return x_NCHX * self.output_scale


class FourierInput(nn.Module):
    """Waves of random direction and frequency below the first cutoff, turned and shifted as w says
    (section 3.1, "Fourier features"; 3.2, "Transformed Fourier features")."""

    def __init__(self, w_dim: int, signal: Signal):
        super().__init__()
        self.signal = signal
        channels = signal.channels
        frequencies = torch.randn(channels, 2)  # turned into a disc of uniform density
        radius = frequencies.norm(dim=1, keepdim=True)
        frequencies /= radius * radius.square().exp().pow(0.25)
        self.weight = nn.Parameter(torch.randn(channels, channels))
        self.affine = FullyConnected(w_dim, 4, [1.0, 0.0, 0.0, 0.0])
        nn.init.zeros_(self.affine.weight)
        self.register_buffer("transform", torch.eye(3))  # the user's own turn and shift
        self.register_buffer("freqs", frequencies * signal.cutoff)
        self.register_buffer("phases", torch.rand(channels) - 0.5)

    def forward(self, w_NW: torch.Tensor) -> torch.Tensor:
        """(N, w_dim) → (N, channels, size, size)."""
        cos_N, sin_N, shift_x_N, shift_y_N = self._turn_and_shift(w_NW)
        zero, one = torch.zeros_like(cos_N), torch.ones_like(cos_N)
        turn_N33 = _matrices([[cos_N, -sin_N, zero], [sin_N, cos_N, zero], [zero, zero, one]])
        shift_N33 = _matrices([[one, zero, -shift_x_N], [zero, one, -shift_y_N], [zero, zero, one]])
        transform_N33 = turn_N33 @ shift_N33 @ self.transform

        # A wave of the moved picture is another wave, of another phase.
        phases_NC = self.phases + (self.freqs @ transform_N33[:, :2, 2:]).squeeze(2)
        frequencies_NC2 = self.freqs @ transform_N33[:, :2, :2]
        rate, cutoff = self.signal.rate, self.signal.cutoff
        # What a user's transform has raised beyond the band fades out towards the Nyquist limit.
        amplitudes_NC = 1 - (frequencies_NC2.norm(dim=2) - cutoff) / (rate / 2 - cutoff)

        places_X = (torch.arange(self.signal.size, device=w_NW.device) + 0.5) / rate
        places_X = places_X - self.signal.size / 2 / rate  # of the samples; the picture is 1 wide
        angles_NCHX = (
            frequencies_NC2[:, :, 0, None, None] * places_X
            + frequencies_NC2[:, :, 1, None, None] * places_X[:, None]
            + phases_NC[:, :, None, None]
        )
        amplitudes_NC11 = amplitudes_NC.clamp(0, 1)[:, :, None, None]
        waves_NCHX = torch.sin(2 * math.pi * angles_NCHX) * amplitudes_NC11
        weight_CC = self.weight / math.sqrt(len(self.weight))
        return F.conv2d(waves_NCHX, weight_CC[:, :, None, None])

    def _turn_and_shift(self, w_NW: torch.Tensor) -> tuple[torch.Tensor, ...]:
        raw_N4 = self.affine(w_NW)
        return (raw_N4 / raw_N4[:, :2].norm(dim=1, keepdim=True)).unbind(1)


def _matrices(rows: list[list[torch.Tensor]]) -> torch.Tensor:
    """Rows of (N,) tensors → (N, rows, columns)."""
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


class Layer(nn.Module):
    """Modulated convolution, then the leaky ReLU at a higher rate between two low-pass filters
    (section 3.2, "Filtered nonlinearities"). ToRGB has neither filters nor demodulation."""

    def __init__(
        self,
        w_dim: int,
        before: Signal,
        after: Signal,
        is_to_rgb: bool,
        *,
        conv_kernel: int,
        filter_size: int,
        lrelu_upsampling: int,
        use_radial_filters: bool,
        conv_clamp: float | None,
    ):
        super().__init__()
        self.is_to_rgb = is_to_rgb
        self.conv_clamp = conv_clamp
        kernel = 1 if is_to_rgb else conv_kernel
        self.affine = FullyConnected(w_dim, before.channels, [1.0])
        self.weight = nn.Parameter(torch.randn(after.channels, before.channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(after.channels))
        self.register_buffer("magnitude_ema", torch.ones(()))  # of the input's squares
        if is_to_rgb:
            return
        rate = max(before.rate, after.rate) * lrelu_upsampling
        self.up, self.down = rate // before.rate, rate // after.rate
        up_taps, down_taps = filter_size * self.up, filter_size * self.down
        # Rotation equivariance wants round filters; but the finest layers must be able to show the
        # spectrum of the training pictures, which is not round (section 3.2, config R).
        radial = use_radial_filters and not after.is_critically_sampled
        up_filter = low_pass(up_taps, before.cutoff, before.half_width * 2, rate)
        down_filter = low_pass(down_taps, after.cutoff, after.half_width * 2, rate, radial)
        self.register_buffer("up_filter", up_filter)
        self.register_buffer("down_filter", down_filter)
        # The picture's centre stays where it is; what the filters need beyond the canvas is zero.
        wanted = (after.size - 1) * self.down + down_taps
        have = (before.size + kernel - 1) * self.up
        padding = wanted - have + up_taps - 1
        first = (padding + self.up) // 2
        self.up_start = up_taps - 1 - first
        self.up_size = wanted

    def forward(self, x_NIHX: torch.Tensor, w_NW: torch.Tensor) -> torch.Tensor:
        """(N, channels, size, size) of the layer before and (N, w_dim) → of this layer."""
        x_NOHX = self._modulated_convolution(x_NIHX, self.affine(w_NW)) + self.bias[:, None, None]
        if self.is_to_rgb:
            return self._clamp(x_NOHX)
        x_NOHX = upsample(x_NOHX, self.up_filter, self.up, self.up_start, self.up_size)
        x_NOHX = self._clamp(F.leaky_relu_(x_NOHX, 0.2).mul_(math.sqrt(2)))
        return downsample(x_NOHX, self.down_filter, self.down)

    def _modulated_convolution(self, x_NIHX: torch.Tensor, styles_NI: torch.Tensor) -> torch.Tensor:
        """Scaling the weights by the styles is scaling what they are multiplied with. Except in
        ToRGB each output channel is brought back to unit standard deviation (Karras et al.,
        "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020, section 2.2)."""
        weight_OIKK = self.weight
        gain = self.magnitude_ema.rsqrt()
        if self.is_to_rgb:
            styles_NI = styles_NI / math.sqrt(weight_OIKK[0].numel())
            return F.conv2d(x_NIHX * (styles_NI * gain)[:, :, None, None], weight_OIKK)
        weight_OIKK = weight_OIKK * weight_OIKK.square().mean((1, 2, 3), keepdim=True).rsqrt()
        styles_NI = styles_NI * styles_NI.square().mean(1, keepdim=True).rsqrt()
        std_NO = (styles_NI.square() @ weight_OIKK.square().sum((2, 3)).T + 1e-8).sqrt()
        x_NIHX = x_NIHX * (styles_NI * gain)[:, :, None, None]
        padding = weight_OIKK.shape[-1] - 1  # the canvas grows, then is cropped
        x_NOHX = F.conv2d(x_NIHX, weight_OIKK, padding=padding)
        return x_NOHX / std_NO[:, :, None, None]

    def _clamp(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.conv_clamp is None else x.clamp_(-self.conv_clamp, self.conv_clamp)


def low_pass(
    taps: int, cutoff: float, width: float, rate: float, radial: bool = False
) -> torch.Tensor:
    """A windowed low-pass filter that adds up to 1: (taps,), or (taps, taps) if `radial`.

    Sinc or, where it must be round, jinc, under a Kaiser window (appendix C). `cutoff`, the
    transition's `width` and the sampling `rate` are in the same unit.
    """
    if not radial:
        taps_1d = scipy.signal.firwin(taps, cutoff, width=width, fs=rate)
        return torch.tensor(taps_1d, dtype=torch.float32)
    places = (np.arange(taps) - (taps - 1) / 2) / rate
    angles = 2 * np.pi * cutoff * np.hypot(places, places[:, None])
    with np.errstate(invalid="ignore"):
        jinc = np.where(angles == 0, 0.5, scipy.special.j1(angles) / angles)
    beta = scipy.signal.kaiser_beta(scipy.signal.kaiser_atten(taps, width / (rate / 2)))
    window = np.kaiser(taps, beta)
    filter_2d = jinc * np.outer(window, window)
    return torch.tensor(filter_2d / filter_2d.sum(), dtype=torch.float32)


def upsample(x: torch.Tensor, taps: torch.Tensor, up: int, start: int, size: int) -> torch.Tensor:
    """Put `up` - 1 zeros after each sample of the two last axes, and filter both by `taps`, (K,).

    (N, C, H, W) → (N, C, size, size), from the sample `start` of the whole convolution on.
    """
    taps = taps * up  # the zeros take as much of the sum away
    after = (x.shape[3] - 1) * up + len(taps) - start - size
    crop = min(start, after)  # not even computed
    x = F.conv_transpose2d(
        x,
        _each_channel(torch.outer(taps, taps), x),
        stride=up,
        padding=crop,
        groups=x.shape[1],
    )
    kept = slice(start - crop, start - crop + size)
    return x[:, :, kept, kept]


def downsample(x: torch.Tensor, taps: torch.Tensor, down: int) -> torch.Tensor:
    """Filter the two last axes by `taps`, (K,) for each axis or (K, K), symmetric, and keep every
    `down`-th sample of what needs no padding: (N, C, H, W) → (N, C, (H - K) // down + 1, …)."""
    taps = taps if taps.ndim == 2 else torch.outer(taps, taps)
    return F.conv2d(x, _each_channel(taps, x), stride=down, groups=x.shape[1])


def _each_channel(taps: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """One filter for all channels, each for itself. On a CPU this takes less time than filtering
    the axes one after the other, which goes through the memory twice."""
    return taps.expand(x.shape[1], 1, -1, -1)
