# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Distances between two sets of features."""

import torch


def frechet_distance(features: torch.Tensor, reference: torch.Tensor) -> float:
    r"""
    Compute the Fréchet distance between Gaussians fitted to two sets of features.

    `|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))` (Dowson & Landau 1982; Heusel et al. 2017, arXiv 1706.08500, eq. 6).
    It is an FID only with Inception features.

    Args:
        features (`torch.Tensor` of shape `(num, dim)`):
            Features of one set.
        reference (`torch.Tensor` of shape `(num_reference, dim)`):
            Features of the other.

    Returns:
        `float`: The distance, in squared units of the features.

    Raises:
        ValueError: If the dimensions differ, a value is not finite, or a set has fewer than two rows.
    """
    moments = []
    for name, x in (("features", features), ("reference", reference)):
        if x.ndim != 2 or len(x) < 2 or x.shape[1] != reference.shape[-1]:
            raise ValueError(f"`{name}` must have shape (num >= 2, {reference.shape[-1]}), got {tuple(x.shape)}.")
        if not x.isfinite().all():
            raise ValueError(f"`{name}` must be finite, got {int((~x.isfinite()).any(1).sum())} rows that are not.")
        x = x.double()
        moments.append((x.mean(0), torch.cov(x.T).reshape(x.shape[1], x.shape[1])))
    (mean_1, cov_1), (mean_2, cov_2) = moments
    # tr (S1 S2)^(1/2) = tr (R S2 R)^(1/2) with R = S1^(1/2): the eigenvalues of a symmetric matrix
    values, vectors = torch.linalg.eigh(cov_1)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    trace_root = torch.linalg.eigvalsh(root @ cov_2 @ root).clamp(min=0).sqrt().sum()
    return ((mean_1 - mean_2).square().sum() + cov_1.trace() + cov_2.trace() - 2 * trace_root).item()
