# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Moments and distances of features against closed forms."""

import logging
import math

import pytest
import torch
from tiny import randn, seeded

from diffusers_lowfreq.evaluation import FeatureMoments, frechet_distance, kernel_distance, precision_recall


def moments(features, *sizes):
    result = FeatureMoments(features.shape[1])
    for batch in features.split(list(sizes) or len(features)):
        result.update(batch)
    return result


def test_moments_do_not_depend_on_batches_or_merging():
    """With a mean of 1e6 and a standard deviation of 1, any partition keeps eight digits of the covariance."""
    x = 1e6 + randn(60, 5, dtype=torch.float64) @ randn(5, 5, seed=1, dtype=torch.float64)
    parts = moments(x, 1, 19, 40)
    left, right = moments(x[:13]), moments(x[13:], 7, 40)
    left.merge(right)
    left.merge(FeatureMoments(5))
    empty = FeatureMoments(5)
    empty.merge(right)
    for m, rows in ((parts, x), (left, x), (empty, x[13:]), (right, x[13:])):
        assert m.count == len(rows)
        torch.testing.assert_close(m.mean, rows.mean(0), rtol=1e-14, atol=0)
        torch.testing.assert_close(m.covariance, torch.cov(rows.T), rtol=1e-8, atol=1e-8)


def test_moments_refuse_and_stay():
    m = moments(randn(4, 2))
    with pytest.raises(ValueError, match=r"1 of 2 samples are not: 5"):
        m.update(torch.tensor([[0.0, 1.0], [math.inf, 0.0]]))
    with pytest.raises(ValueError, match=r"must have shape \(batch, 2\), got \(4, 3\)"):
        m.update(randn(4, 3))
    with pytest.raises(ValueError, match="dimension 2, got 3"):
        m.merge(FeatureMoments(3))
    assert m.count == 4
    with pytest.raises(ValueError, match="at least 2 features, got 1"):
        moments(randn(1, 2)).covariance


def whitened(num, dim, seed=0):
    """Features whose mean is exactly 0 and whose covariance is exactly the identity."""
    x = randn(num, dim, seed=seed, dtype=torch.float64)
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T


def test_frechet_distance_of_commuting_gaussians():
    """With covariances of one eigenbasis it is |m1 - m2|^2 + sum (s1 - s2)^2; moments and rows agree."""
    x, y = whitened(50, 4), whitened(70, 4, seed=1)
    basis = torch.linalg.qr(randn(4, 4, seed=2, dtype=torch.float64))[0]
    std_1, std_2 = torch.tensor([1.0, 2.0, 0.5, 0.0]).double(), torch.tensor([3.0, 1.0, 0.5, 2.0]).double()
    shift = torch.tensor([1.0, -2.0, 0.0, 0.5]).double()
    x, y = x * std_1 @ basis.T, y * std_2 @ basis.T + shift
    expected = ((std_1 - std_2).square().sum() + shift.square().sum()).item()
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(moments(x, 20, 30), y) == pytest.approx(frechet_distance(x, y), rel=1e-9)
    assert frechet_distance(y, x) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(x, moments(x)) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_covariances_that_do_not_commute():
    """For 2x2 matrices `tr (A B)^(1/2) = (tr AB + 2 det(AB)^(1/2))^(1/2)`."""
    a, b = (randn(2, 2, seed=i, dtype=torch.float64) for i in (3, 4))
    a, b = a @ a.T, b @ b.T
    x, y = (whitened(30, 2, seed=i) @ torch.linalg.cholesky(c).T for i, c in ((0, a), (1, b)))
    root = ((a @ b).trace() + 2 * (a @ b).det().sqrt()).sqrt()
    assert frechet_distance(x, y) == pytest.approx((a.trace() + b.trace() - 2 * root).item(), rel=1e-9)


def test_few_features_warn_and_name_the_rank(caplog):
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    try:
        frechet_distance(randn(9, 8), randn(9, 8))
        assert not caplog.records
        frechet_distance(randn(9, 8), randn(8, 8))
    finally:
        logger.removeHandler(caplog.handler)
    (record,) = caplog.records
    assert "`reference` has rank at most 7 of 8" in record.getMessage()


def kernel(x, y):
    return (sum(a * b for a, b in zip(x, y)) / len(x) + 1) ** 3


def test_kernel_distance_is_the_definition():
    """Against the definition in plain Python: the mean over pairs of different rows, and over all pairs of the two sets."""
    x, y = randn(5, 3, dtype=torch.float64).tolist(), (1 + randn(7, 3, seed=1, dtype=torch.float64)).tolist()

    def within(s):
        return sum(kernel(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j) / (len(s) * (len(s) - 1))

    expected = within(x) + within(y) - 2 * sum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))
    for num_subsets in (None, 1):
        mean, std = kernel_distance(torch.tensor(x).double(), torch.tensor(y).double(), num_subsets)
        assert mean == pytest.approx(expected, rel=1e-6) and std == 0


def test_kernel_distance_of_point_masses():
    """All rows at `a` against all at `b`: k(a, a) + k(b, b) - 2 k(a, b), through several blocks."""
    a, b = [1.0, 2.0], [3.0, -1.0]
    expected = kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)
    x, y = torch.tensor([a]).expand(2500, 2), torch.tensor([b]).expand(1100, 2)
    assert kernel_distance(x, y, num_subsets=None) == (pytest.approx(expected, rel=1e-12), 0)
    assert kernel_distance(x, y, 3, 10) == (pytest.approx(expected), pytest.approx(0, abs=1e-12))


def test_kernel_distance_of_subsets_is_unbiased():
    """The mean over many subsets is the estimate of the whole set; it is 0 for equal distributions; the generator fixes it."""
    x, y = randn(60, 4), 0.3 + randn(50, 4, seed=1)
    whole, _ = kernel_distance(x, y, None)
    mean, std = kernel_distance(x, y, 400, 10, seeded())
    assert abs(mean - whole) < 5 * std / math.sqrt(400) and std > 0
    assert (mean, std) == kernel_distance(x, y, 400, 10, seeded())
    assert mean != kernel_distance(x, y, 400, 10, seeded(1))[0]
    mean, std = kernel_distance(randn(4000, 4), randn(4000, 4, seed=1), 100, 40, seeded())
    assert abs(mean) < 5 * std / math.sqrt(100)
    # A subset never repeats a row: as large as the set, it is the set
    assert kernel_distance(x, y[:50], 3, 50, seeded())[1] > 0
    assert kernel_distance(x[:50], y, 3, 99, seeded())[1] == pytest.approx(0, abs=1e-12)


def test_kernel_distance_averages_its_subsets():
    """Two subsets, drawn by hand in the same order: their mean, and half their difference."""
    x, y = randn(60, 4), 0.3 + randn(50, 4, seed=1)
    generator = seeded()
    first, second = (
        kernel_distance(*(z[torch.randperm(len(z), generator=generator)[:10]] for z in (x, y)), None)[0]
        for _ in range(2)
    )
    assert kernel_distance(x, y, 2, 10, seeded()) == pytest.approx(((first + second) / 2, abs(first - second) / 2))


def test_precision_recall_is_the_definition():
    x, y = randn(40, 3), 1 + 2 * randn(30, 3, seed=1)

    def share(points, manifold, k):
        radius = [sorted(math.dist(a, b) for b in manifold)[k] for a in manifold]
        return sum(any(math.dist(p, a) <= r for a, r in zip(manifold, radius)) for p in points) / len(points)

    for k in (1, 3):
        expected = (share(x.tolist(), y.tolist(), k), share(y.tolist(), x.tolist(), k))
        assert 0 < expected[1] != expected[0] < 1
        assert precision_recall(x, y, k) == pytest.approx(expected)


def test_precision_recall_of_grids():
    """Sets on a line with a known overlap: a missing mode lowers recall, a stray one precision. Several blocks."""
    line = torch.arange(2000.0)[:, None]
    assert precision_recall(line, line) == (1, 1)
    assert precision_recall(line[:1000], line) == (1, 1003 / 2000)  # the last ball, of radius 3, reaches 1002
    assert precision_recall(line, line + 1e5) == (0, 0)
    stray = torch.cat([line[:1500], line[:500] + 1e5])
    assert precision_recall(stray, line) == (0.75, 1503 / 2000)


@pytest.mark.parametrize(
    "function, smallest",
    [(frechet_distance, 2), (kernel_distance, 2), (precision_recall, 4)],
    ids=["frechet_distance", "kernel_distance", "precision_recall"],
)
def test_bad_features(function, smallest):
    good, bad = randn(8, 2), randn(8, 2)
    bad[[2, 5], 1] = math.nan
    with pytest.raises(ValueError, match="`features` must be finite, but 2 of 8 samples are not: 2, 5"):
        function(bad, good)
    with pytest.raises(ValueError, match="`reference` must be finite"):
        function(good, bad)
    with pytest.raises(ValueError, match=rf"`reference` must have shape \(num >= {smallest}, 2\)"):
        function(good, good[: smallest - 1])
    with pytest.raises(ValueError, match="must have (shape|dimension)"):
        function(good, randn(8, 3))


def test_bad_options():
    x = randn(8, 2)
    for call, message in (
        (lambda: kernel_distance(x, x, 0), "`num_subsets` must be a positive integer, got 0"),
        (lambda: kernel_distance(x, x, 2, 1), "`subset_size` must be an integer from 2 on, got 1"),
        (lambda: precision_recall(x, x, 0), "`num_neighbors` must be a positive integer, got 0"),
        (lambda: frechet_distance(x, FeatureMoments(3)), "`reference` must have dimension 2, as `features`, got 3"),
        (lambda: frechet_distance(x, FeatureMoments(2)), "at least 2 features, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
