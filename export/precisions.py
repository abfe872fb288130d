"""Precisions: how targets store weights and compute, and the limits that their files must keep. Plain data.

A name means the same on every target that offers it. `Limits` are defaults: a device profile overrides them per target
(`[targets.limits]`). They follow from what the embedded checkpoint reached at full width (benchmarks/results/precisions.md; for
w8a16 an export for android-mid), with room for narrower widths and another training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType


@dataclass(frozen=True)
class Limits:
    """The limits that exported files must keep.

    `error` is the largest relative error of a component fed with the reference's inputs. PSNRs are in dB. Of the few pictures
    of the preview: `psnr` the least, `median_psnr` their lower median. Rounding turns about one picture in a hundred into
    another one: the least tells only such a picture from a wrong one, the median is held tightly. Of the fidelity gate's many
    pictures: `least_psnr` the least, `mean_psnr` the mean; `ssim` the mean structural similarity, at most 1; `latent_error` the
    relative error of the latent after the worst step, a mean; `score_loss` the share of a scorer's points that may be lost
    beyond what its 95 % interval leaves open.
    """

    error: float
    psnr: float
    median_psnr: float
    least_psnr: float
    mean_psnr: float
    ssim: float
    latent_error: float
    score_loss: float = 0.0


LIMIT_NAMES = tuple(f.name for f in fields(Limits))


@dataclass(frozen=True)
class _Precision:
    """One way to store weights and to compute."""

    name: str
    weight_bytes: float  # of one weight, with its share of scales and palettes
    doc: str
    limits: Limits


def _row(name: str, weight_bytes: float, doc: str, limits: Limits) -> tuple[str, _Precision]:
    return name, _Precision(name, weight_bytes, doc, limits)


# Where Arm computes in fp16 the student is 0.008 off and the picture has 61 dB, x86 having 0.001 and 72 to 87 dB (docs/arm.md):
# the limits of fp16 hold there, too.
# fp32 artifacts differ from the reference only by the order of summation; fp16 has 11 significant bits, 5e-4 per operation.
_FP32 = Limits(error=1e-4, psnr=40.0, median_psnr=60.0, least_psnr=40.0, mean_psnr=70.0, ssim=0.999, latent_error=1e-4)
_FP16 = Limits(error=2e-2, psnr=20.0, median_psnr=40.0, least_psnr=20.0, mean_psnr=45.0, ssim=0.99, latent_error=2e-2)
_EIGHT = Limits(
    error=0.25, psnr=12.0, median_psnr=20.0, least_psnr=10.0, mean_psnr=30.0, ssim=0.9, latent_error=0.2, score_loss=0.03
)
# Ranges hold all calibration inputs: 16 bits lose little, and 8-bit weights with one scale a layer lose most.
_EIGHT_SIXTEEN = Limits(error=0.15, psnr=18.0, median_psnr=25.0, least_psnr=14.0, mean_psnr=35.0, ssim=0.95, latent_error=0.12)
_SIX = Limits(
    error=0.3, psnr=12.0, median_psnr=22.0, least_psnr=10.0, mean_psnr=32.0, ssim=0.9, latent_error=0.2, score_loss=0.05
)
# At 4.3 bits, tuned, the embedded checkpoint has: error 0.14, PSNR 16.1 dB least and 39.4 mean, SSIM 0.977, latent error 0.15,
# 1 point lost. An untrained network, whose weights have no structure, has a mean of 20 dB: hence the margin. Another gate
# (`error_to_tuned`) compares the file with the palettes that were tuned.
_MIXED = Limits(
    error=0.35, psnr=8.0, median_psnr=10.0, least_psnr=8.0, mean_psnr=18.0, ssim=0.6, latent_error=0.4, score_loss=0.03
)
_FOUR = Limits(
    error=0.8, psnr=8.0, median_psnr=10.0, least_psnr=8.0, mean_psnr=20.0, ssim=0.8, latent_error=0.45, score_loss=0.1
)
_FOUR_BLOCKS = Limits(
    error=0.6, psnr=8.0, median_psnr=14.0, least_psnr=8.0, mean_psnr=24.0, ssim=0.85, latent_error=0.4, score_loss=0.05
)

PRECISIONS: Mapping[str, _Precision] = MappingProxyType(
    dict(
        (
            _row("fp32", 4, "single precision", _FP32),
            _row("fp16", 2, "half precision", _FP16),
            _row("palette8", 1.01, "k-means palettes of 256 values, one per layer; computes in fp16", _EIGHT),
            _row("palette6", 0.76, "k-means palettes of 64 values, one per layer; computes in fp16", _SIX),
            _row("palette4", 0.51, "k-means palettes of 16 values, one per layer; computes in fp16", _FOUR),
            _row("palette8-grouped", 1.15, "as palette8, a palette for every 16 output channels", _EIGHT),
            _row("palette6-grouped", 0.80, "as palette6, a palette for every 16 output channels", _SIX),
            _row("palette4-grouped", 0.53, "as palette4, a palette for every 16 output channels", _FOUR_BLOCKS),
            _row("mixed", 1.01, "palettes of 16 or 256 values, by each layer's sensitivity, and tuned", _MIXED),
            _row("int8", 1.07, "8-bit linear weights, a scale for every 32 inputs; computes in fp16", _EIGHT),
            _row("int4", 0.65, "4-bit linear weights, a scale for every 32 inputs; activations stay exact", _FOUR_BLOCKS),
            _row("w8a8", 1.02, "8-bit weights, and 8-bit activations with fixed calibrated ranges", _EIGHT),
            _row("int8-dynamic", 1.04, "8-bit weights per channel, 8-bit activations measured at run time", _EIGHT),
            _row("int4-dynamic", 0.58, "4-bit weights per group of 32, 8-bit activations measured at run time", _FOUR_BLOCKS),
            _row("w8a16", 1.01, "8-bit weights, and 16-bit activations with calibrated ranges", _EIGHT_SIXTEEN),
            _row("int8-static", 1.04, "8-bit weights per channel, 8-bit activations with calibrated ranges", _EIGHT),
        )
    )
)
