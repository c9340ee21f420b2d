# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Statistics of features and the comparison of two sets of images."""

import ast
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from tiny import seeded

from diffusers_lowfreq import evaluation
from diffusers_lowfreq.evaluation import (
    FeatureStatistics,
    compare,
    frechet_distance,
    inception_extractor,
    kernel_distance,
    precision_recall,
)
from diffusers_lowfreq.evaluation.features import InceptionV3


class Means(torch.nn.Module):
    """The mean of each channel, with dropout in training mode, and as a tuple with a second output if asked."""

    def __init__(self, with_logits: bool = False):
        super().__init__()
        self.with_logits = with_logits
        self.dropout = torch.nn.Dropout()

    def forward(self, images):
        features = self.dropout(images.mean((2, 3)))
        return (images.flatten(1), features) if self.with_logits else features


def images(num, seed=0, power=1.0):
    return torch.rand(num, 3, 4, 4, generator=seeded(seed)) ** power


def statistics(extractor, x, batch_size=100, **options):
    result = FeatureStatistics(extractor, **options)
    for part in x.split(7):
        result.update(part, batch_size)
    return result


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("with_logits", [False, True])
@pytest.mark.parametrize("script", [False, True])
def test_figures_are_those_of_the_features(with_logits, script):
    """The result is the same for any batches, for a tuple of outputs and for TorchScript, and after a round trip through JSON."""
    x, y = images(40), images(30, seed=1, power=1.5)
    extractor = Means(with_logits)
    if script:
        extractor = torch.jit.trace(extractor.eval(), x[:2])
    generated = statistics(extractor, x, batch_size=3)
    reference = statistics(extractor, y, split="test")
    result = compare(generated, reference, generator=seeded())
    a, b = x.mean((2, 3)), y.mean((2, 3))
    kernel_mean, kernel_std = kernel_distance(a, b, generator=seeded())
    precision, recall = precision_recall(a, b)
    expected = {
        "frechet_distance": frechet_distance(a, b),
        "kernel_distance": kernel_mean,
        "kernel_distance_std": kernel_std,
        "precision": precision,
        "recall": recall,
    }
    labels = {"extractor": "Means", "split": "test", "num_images": 40, "num_reference": 30}
    assert {k: result[k] for k in labels} == labels
    assert {k: result[k] for k in result.keys() - labels.keys()} == pytest.approx(expected, rel=1e-4, abs=1e-9)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert precision != recall


def test_moments_are_of_all_and_features_of_the_first():
    extractor, x = Means(), images(40)
    capped = statistics(extractor, x, max_features=10)
    assert capped.num_images == 40
    torch.testing.assert_close(capped.features, x[:10].mean((2, 3)))
    torch.testing.assert_close(capped.moments.mean.float(), x.mean((0, 2, 3)))


def test_only_inception_is_called_fid():
    """The Fréchet distance of any other network is not an FID; Inception gets rounded bytes."""

    class Bytes(torch.nn.Module):
        def forward(self, x):
            assert x.dtype == torch.uint8
            return x.float().mean((2, 3))

    for extractor, key in ((InceptionV3(Bytes()), "fid"), (Means(), "frechet_distance")):
        names = compare(statistics(extractor, images(9)), statistics(extractor, images(9, 1))).keys()
        assert names & {"fid", "frechet_distance"} == {key}
    levels = torch.arange(256.0).view(256, 1, 1, 1).expand(256, 3, 2, 2)
    torch.testing.assert_close(InceptionV3(Bytes())((levels - 0.4).clamp(0) / 255), levels[..., 0, 0])


@pytest.mark.skipif(importlib.util.find_spec("torch_fidelity") is not None, reason="torch-fidelity is installed")
def test_missing_inception_names_the_package():
    with pytest.raises(ImportError, match="torchmetrics and torch-fidelity"):
        inception_extractor()


def test_import_loads_nothing_optional():
    """Optional packages such as scipy and torchmetrics are imported where they are used, not at the top of a module."""
    for file in Path(evaluation.__file__).parent.glob("*.py"):
        for statement in ast.parse(file.read_text()).body:
            names = [a.name for a in statement.names] if isinstance(statement, ast.Import) else []
            names += [statement.module] if isinstance(statement, ast.ImportFrom) and not statement.level else []
            roots = {name.split(".")[0] for name in names}
            assert roots <= {"torch", "diffusers", *sys.stdlib_module_names}, file


def test_different_extractors_and_empty_splits_are_refused():
    extractor, x = Means(), images(9)
    good = statistics(extractor, x, name="a")
    for other in (statistics(Means(), x, name="a"), statistics(extractor, x, name="b")):
        with pytest.raises(ValueError, match="must come from one extractor"):
            compare(good, other)
    with pytest.raises(ValueError, match=r"`reference` must hold images, but its split \(test\) is empty"):
        compare(good, FeatureStatistics(extractor, name="a", split="test"))
    with pytest.raises(ValueError, match="`generated` must hold images"):
        compare(FeatureStatistics(extractor, name="a"), good)


def flat(images):
    return images.flatten(1)


class Wrong(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda x: x, r"`extractor` must give features of shape \(5, dim\), got \(5, 3, 4, 4\)"),
        (lambda x: x.flatten(1)[1:], r"got \(4, 48\)"),
        (lambda x: (x.flatten(1), None), "got NoneType"),
        (lambda x: {"features": x}, "got dict"),
        (lambda x: x.flatten(1).log(), "`extractor` must be finite, but 2 of 5 samples are not: 1, 3"),
    ],
)
def test_bad_extractors(function, message):
    x = images(5) + 0.001
    x = x / x.max()
    x[[1, 3], 0, 0, 0] = 0
    result = FeatureStatistics(Wrong(function))
    with pytest.raises(ValueError, match=message):
        result.update(x)
    assert result.num_images == 0 and not len(result.features)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x: x[:, :1], r"`images` must be a floating point tensor of shape \(num, 3, height, width\)"),
        (lambda x: x[:0], r"got torch.float32 of \(0, 3, 4, 4\)"),
        (lambda x: (255 * x).byte(), "got torch.uint8"),
        (lambda x: 2 * x - 1, r"`images` must lie in \[0, 1\], got values from -"),
        (lambda x: 255 * x, r"`images` must lie in \[0, 1\]"),
        (lambda x: x[:2].where(torch.tensor([True, False]).view(2, 1, 1, 1), torch.nan), "`images` .* 1 of 2 .*: 10"),
    ],
)
def test_bad_images(change, message):
    """A bad sample after nine good ones: the error counts from the first sample, and the nine are kept."""
    result = statistics(Means(), images(9))
    with pytest.raises(ValueError, match=message):
        result.update(change(images(9, seed=1)))
    assert result.num_images == len(result.features) == 9


def test_features_keep_their_length():
    result = statistics(Wrong(flat), images(7))
    with pytest.raises(ValueError, match=r"shape \(2, 48\), got \(2, 75\)"):
        result.update(torch.rand(2, 3, 5, 5))
    with pytest.raises(ValueError, match="`max_features` must be a positive integer, got 0"):
        FeatureStatistics(Means(), max_features=0)
