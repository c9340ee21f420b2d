# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Couplings between sources and samples. The identity coupling of the low-frequency source needs no code: row i of the
source *is* made from row i of the samples."""

import torch


def minibatch_optimal_transport(
    source: torch.Tensor, sample: torch.Tensor, labels: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Find the exact assignment between the rows of a batch (minibatch OT-CFM, Tong et al. 2023, arXiv 2302.00482).

    `source[order]` is paired with `sample` so that the sum of squared distances is the least possible. With labels,
    rows are exchanged within a class only, since otherwise the conditional source would no longer be Gaussian.

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
        ValueError: If the shapes differ.
    """
    from scipy.optimize import linear_sum_assignment

    if source.shape != sample.shape:
        raise ValueError(
            f"`source` must have the shape of `sample`, {tuple(sample.shape)}, got {tuple(source.shape)}."
        )
    if labels is not None and labels.shape != (len(sample),):
        raise ValueError(f"`labels` must have shape ({len(sample)},), got {tuple(labels.shape)}.")
    cost = torch.cdist(sample.flatten(1).float(), source.flatten(1).float()).square().cpu()
    order = torch.empty(len(sample), dtype=torch.long)
    labels = torch.zeros(len(sample), dtype=torch.long) if labels is None else labels.cpu()
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        rows, columns = linear_sum_assignment(cost[members][:, members].numpy())
        order[members[rows]] = members[columns]
    return order.to(source.device)
