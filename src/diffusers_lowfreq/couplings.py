# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Couplings of sources with samples. The identity coupling of the low-frequency source needs no code: row i of the source
*is* made from row i of the samples."""

import math
from collections.abc import Callable, Iterable

import torch

from diffusers.utils.torch_utils import randn_tensor

from .guards.tensors import check_finite, check_shape
from .guards.values import check_count


BLOCK = 2**24  # elements in the largest block of scores that is held at a time: 64 MiB in float32


def minibatch_optimal_transport(
    source: torch.Tensor, sample: torch.Tensor, labels: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Find the exact assignment between the rows of a batch (minibatch OT-CFM, Tong et al. 2023, arXiv 2302.00482).

    `source[order]` is paired with `sample` so that the sum of squared distances is minimal. With labels, rows are exchanged
    only within a class; otherwise the source of a class would no longer be Gaussian.

    Args:
        source (`torch.Tensor` of shape `(batch, ...)`):
            Draws of the source, usually noise.
        sample (`torch.Tensor` of the shape of `source`):
            Data.
        labels (`torch.Tensor` of shape `(batch,)`, *optional*):
            Classes of the samples.

    Returns:
        `torch.Tensor` of shape `(batch,)`: The `order`, a permutation on the device of `source`.

    Raises:
        ValueError: If the shapes differ, a value is not finite, or the labels do not fit.
    """
    from scipy.optimize import linear_sum_assignment

    for name, value in (("source", source), ("sample", sample)):
        if not isinstance(value, torch.Tensor) or value.ndim < 2:
            raise ValueError(f"`{name}` must be a tensor of shape (batch, ...), got {type(value).__name__}.")
    if source.shape != sample.shape:
        raise ValueError(
            f"`source` must have the shape of `sample`, {tuple(sample.shape)}, got {tuple(source.shape)}."
        )
    if labels is not None:
        _check_labels(labels, len(sample))
    cost = torch.cdist(sample.flatten(1).float(), source.flatten(1).float()).square().cpu()
    if not cost.isfinite().all():
        raise ValueError("`source` and `sample` must be finite, some numbers are not.")
    order = torch.empty(len(sample), dtype=torch.long)
    labels = torch.zeros(len(sample), dtype=torch.long) if labels is None else labels.cpu()
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        rows, columns = linear_sum_assignment(cost[members][:, members].numpy())
        order[members[rows]] = members[columns]
    return order.to(source.device)


def _nearest(source: torch.Tensor, points: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Find for each row of the source the point with the largest `2 <source, point> + bias`, block by block."""
    nearest = []
    for rows in source.split(max(1, BLOCK // len(points))):
        scores = torch.addmm(bias, rows, points.T, alpha=2)
        # On the CPU, PyTorch's argmax takes as long as the product itself; NumPy's takes a tenth of that
        on_cpu = scores.device.type == "cpu"
        nearest.append(torch.from_numpy(scores.numpy().argmax(1)) if on_cpu else scores.argmax(1))
    return torch.cat(nearest)


def _check_labels(labels: torch.Tensor, num: int):
    if not isinstance(labels, torch.Tensor) or labels.shape != (num,) or labels.is_floating_point():
        got = f"{tuple(labels.shape)} of {labels.dtype}" if isinstance(labels, torch.Tensor) else type(labels).__name__
        raise ValueError(f"`labels` must have shape ({num},) and hold integers, got {got}.")


class SemiDiscreteCoupling:
    """
    Couple Gaussian noise with a whole data set by semi-discrete optimal transport with squared Euclidean cost.

    The space of the noise is divided into cells (eq. 1 below), one for each sample, each of mass `1 / N`. Noise is paired
    with the sample of its cell. The weights `g` that make the masses equal maximise the concave dual (Genevay et al. 2016,
    arXiv 1605.08527, semi-discrete case without regularisation)

        E_z[min_i |z - x_i|^2 - g_i] + mean(g),   with the gradient   1 / N - P(z in cell i)

    and are fitted once, before training, by averaged stochastic gradient ascent. AlignFlow (Kong et al. 2025, arXiv
    2510.15038) introduced this coupling to flow matching, with an entropic fit; this fit is not entropic. With labels, each
    class is a problem of its own, so the source of every class stays Gaussian.

    The noise stays Gaussian whatever the weights. The fit decides how often each sample is seen; check it with
    [`~SemiDiscreteCoupling.count_hits`]. The initial weights equalise the masses if the scores of the samples are
    independent normal numbers: `g_i = |x_i|^2 - 2 q |x_i - mean|`, where `q` is the normal quantile of `1 - 1 / (N + 1)`.
    (With zero weights, in high dimension, a few short samples are nearest to all noise.) The steps are in units of the mean
    gap between the two best scores: a weight that changes by this much changes its mass by a factor of about e.

    Memory: one float32 copy of the samples on their device, 64 MiB, and float64 copies of one class during construction.
    Each draw costs one product with the samples of each class. Equal samples compete for one cell: keep one of them.

    Args:
        samples (`torch.Tensor` of shape `(num_samples, ...)`):
            All the data, in the units in which the flow is trained.
        labels (`torch.Tensor` of shape `(num_samples,)`, *optional*):
            Classes of the samples, integers.

    Attributes:
        weights (`torch.Tensor` of shape `(num_samples,)`, float64):
            The dual weights `g`, with mean zero in each class. They may be stored and set again.

    Raises:
        ValueError: If there are no samples, a sample is not finite, or the labels do not fit.
    """

    def __init__(self, samples: torch.Tensor, labels: torch.Tensor | None = None):
        if not isinstance(samples, torch.Tensor) or samples.ndim < 2 or samples.numel() == 0:
            got = tuple(samples.shape) if isinstance(samples, torch.Tensor) else type(samples).__name__
            raise ValueError(f"`samples` must have shape (num_samples >= 1, ...), got {got}.")
        check_finite("samples", samples)
        if labels is not None:
            _check_labels(labels, len(samples))
        self._shape = samples.shape[1:]
        self._num_samples, self._device = len(samples), samples.device
        self._labeled = labels is not None
        labels = torch.zeros(len(samples), dtype=torch.long) if labels is None else labels
        labels = labels.to(samples.device)
        self.weights = torch.empty(len(samples), dtype=torch.float64, device=samples.device)
        # label -> (rows, centred samples, squared lengths). Centring is safe: a shift of all samples changes no cell.
        self._classes = {}
        for label in labels.unique().tolist():
            rows = (labels == label).nonzero()[:, 0]
            points = samples[rows].flatten(1).double()
            squares = points.square().sum(1)
            points = points - points.mean(0)
            quantile = torch.special.ndtri(torch.tensor(1 - 1 / (len(rows) + 1), dtype=torch.float64)).item()
            weights = squares - 2 * quantile * points.norm(dim=1)
            self.weights[rows] = weights - weights.mean()
            self._classes[label] = (rows, points.float(), squares)

    def _bias(self, label: int) -> torch.Tensor:
        rows, _, squares = self._classes[label]
        bias = self.weights[rows] - squares
        return (bias - bias.mean()).float()

    def _draw(self, batch_size: int, generator: torch.Generator | None) -> torch.Tensor:
        shape = (batch_size, self._shape.numel())
        return randn_tensor(shape, generator=generator, device=self._device, dtype=torch.float32)

    @torch.no_grad()
    def fit(
        self,
        num_steps: int = 1000,
        batch_size: int = 256,
        generator: torch.Generator | None = None,
        progress: Callable[[Iterable], Iterable] | None = None,
    ):
        """
        Improve the weights by averaged stochastic gradient ascent; a second call continues from the current weights.

        Each step draws `batch_size` noises, the same for every class. A sample of a class of `n` gets `r = batch_size / n`
        of them on average. Step k changes a weight by `unit * min(1, r / (1 + r * k)**0.5) * (1 - hits / r)`, but lowers it
        by at most `2 * unit`, so that a sample with far too much mass does not lose all of it for long. The weights of the
        last half of the steps are averaged. The accuracy depends on the number of draws for each sample, `r * num_steps`:
        counts cannot tell masses apart more finely, so the total variation distance of the masses from uniform stays at
        about `0.5 / sqrt(r * num_steps)` (measured; 0.4 is the lower bound).

        Args:
            num_steps (`int`, defaults to `1000`):
                The number of steps.
            batch_size (`int`, defaults to `256`):
                Draws of noise in a step.
            generator (`torch.Generator`, *optional*):
                Draws the noise.
            progress (`Callable`, *optional*):
                Wraps the iterable of the steps, as `tqdm` does.

        Raises:
            ValueError: If `num_steps` or `batch_size` is not a positive integer.
        """
        check_count("num_steps", num_steps, math.inf)
        check_count("batch_size", batch_size, math.inf)
        biases = {label: self._bias(label) for label, (rows, _, _) in self._classes.items() if len(rows) > 1}
        sums = {label: torch.zeros_like(bias, dtype=torch.float64) for label, bias in biases.items()}
        first_averaged = num_steps // 2
        units = {}
        for step in range(num_steps) if progress is None else progress(range(num_steps)):
            noise = self._draw(batch_size, generator)
            for label, bias in biases.items():
                points = self._classes[label][1]
                if step == 0:
                    block = noise[: max(1, BLOCK // len(points))]
                    best = torch.addmm(bias, block, points.T, alpha=2).topk(2).values
                    units[label] = (best[:, 0] - best[:, 1]).mean()
                ratio = batch_size / len(points)
                hits = torch.bincount(_nearest(noise, points, bias), minlength=len(points))
                rate = min(1.0, ratio / (1 + ratio * step) ** 0.5)
                bias += units[label] * (rate * (1 - hits / ratio)).clamp(min=-2)
                if step >= first_averaged:
                    sums[label] += bias
        for label, total in sums.items():
            rows, _, squares = self._classes[label]
            weights = total / (num_steps - first_averaged) + squares
            self.weights[rows] = weights - weights.mean()

    @torch.no_grad()
    def assign(self, source: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """
        Find the sample of each source, `argmin_i |source - x_i|^2 - g_i` (1), within its class if there are labels.

        Args:
            source (`torch.Tensor` of shape `(batch, ...)`):
                Standard normal noise, of the shape of the samples, on any device.
            labels (`torch.Tensor` of shape `(batch,)`, *optional*):
                The class of each source; given if and only if the samples have labels. Draw classes as often as they occur in
                the data.

        Returns:
            `torch.Tensor` of shape `(batch,)`: Rows of the samples, on the device of `source`.

        Raises:
            ValueError: If the shape or the labels do not fit the samples.
        """
        check_shape("source", source, "batch", *self._shape, least=0)
        if (labels is not None) != self._labeled:
            have = "have labels" if self._labeled else "have none"
            raise ValueError(f"`labels` must {'' if self._labeled else 'not '}be given: the samples {have}.")
        noise = source.flatten(1).to(self._device, torch.float32)
        if labels is None:
            labels = torch.zeros(len(source), dtype=torch.long)
        _check_labels(labels, len(source))
        labels = labels.to(self._device)
        indices = torch.empty(len(source), dtype=torch.long, device=self._device)
        for label in labels.unique().tolist():
            if label not in self._classes:
                raise ValueError(f"`labels` must be among those of the samples, got {label}.")
            rows, points, _ = self._classes[label]
            members = (labels == label).nonzero()[:, 0]
            indices[members] = rows[_nearest(noise[members], points, self._bias(label))]
        return indices.to(source.device)

    @torch.no_grad()
    def count_hits(
        self, num_draws: int, generator: torch.Generator | None = None, batch_size: int = 256
    ) -> torch.Tensor:
        """
        Count how often noise hits each sample, to see how well the fit balances them.

        With exact weights, a sample of a class of `n` is hit `num_draws / n` times, up to chance.

        Args:
            num_draws (`int`):
                Draws of noise, the same for every class.
            generator (`torch.Generator`, *optional*):
                Draws the noise.
            batch_size (`int`, defaults to `256`):
                Draws at a time.

        Returns:
            `torch.Tensor` of shape `(num_samples,)`: The counts, int64.

        Raises:
            ValueError: If `num_draws` or `batch_size` is not a positive integer.
        """
        check_count("num_draws", num_draws, math.inf)
        check_count("batch_size", batch_size, math.inf)
        biases = {label: self._bias(label) for label in self._classes}
        counts = torch.zeros(self._num_samples, dtype=torch.long, device=self._device)
        for start in range(0, num_draws, batch_size):
            noise = self._draw(min(batch_size, num_draws - start), generator)
            for label, (rows, points, _) in self._classes.items():
                counts[rows] += torch.bincount(_nearest(noise, points, biases[label]), minlength=len(points))
        return counts
