# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The conditions of a network: labels, captions, or none.

`choose(batch, draws)` gives the condition of each sample as a number. The couplings need it, since they exchange sources or
noise only between samples of the same condition. `conditions(labels, draws)` drops the conditions of some samples, so that the
model can be guided, and returns the inputs of the network.
"""

import torch

from .keyed import Draws


class Unconditional:
    """No condition."""

    unconditional = None

    def choose(self, batch: dict, draws: Draws) -> None:
        """There is nothing to choose from."""
        return None

    def __call__(self, labels: None, draws: Draws) -> dict:
        """Return no input."""
        return {}


class Labels:
    """
    The class of each image.

    Args:
        num_classes (`int`):
            The number of classes. It also stands for a dropped label.
        dropout (`float`):
            The share of labels to drop.
    """

    unconditional = None  # none needed: for the unconditional call, an objective leaves `class_labels` out

    def __init__(self, num_classes: int, dropout: float):
        self.num_classes, self.dropout = num_classes, dropout

    def choose(self, batch: dict, draws: Draws) -> torch.Tensor:
        """Return the label of each sample."""
        return batch["label"].to(draws.device)

    def __call__(self, labels: torch.Tensor, draws: Draws) -> dict[str, torch.Tensor]:
        """Return `class_labels`, some of them dropped."""
        return {"class_labels": labels.masked_fill(draws.uniform() < self.dropout, self.num_classes)}


class Captions:
    """
    A caption of each image, drawn anew at every visit.

    Args:
        texts ([`CaptionCache`] or [`StreamedCaptions`]):
            The embeddings.
        dropout (`float`):
            The share of captions to replace by the empty one.
        unconditional (`dict[str, torch.Tensor]`):
            The inputs of the network for the empty caption; each has a single row.
    """

    def __init__(self, texts, dropout: float, unconditional: dict[str, torch.Tensor]):
        self.texts, self.dropout, self.unconditional = texts, dropout, unconditional

    def choose(self, batch: dict, draws: Draws) -> torch.Tensor:
        """Draw a caption of each sample, and return its number among the texts."""
        return self.texts.choose(batch["position"], draws.uniform("cpu")).to(draws.device)

    def __call__(self, labels: torch.Tensor, draws: Draws) -> dict[str, torch.Tensor]:
        """Return the embeddings of the captions, some of them dropped."""
        labels = labels.masked_fill(draws.uniform() < self.dropout, self.texts.empty)
        return self.texts.embeddings(labels, draws.device)


class EncodedConditions:
    """
    The inputs that a stock pipeline makes of prompts or labels for its own network.

    Args:
        table (`dict[str, torch.Tensor]`):
            The inputs of the network, a row for each distinct condition. The last row is that of a dropped one.
        shared (`dict`):
            The inputs that are the same for all.
        numbers (`list[list[int]]`, *optional*):
            The rows of the table that fit each image, one of which is drawn at each visit. Omitted: there is no condition.
        dropout (`float`):
            The share of conditions to drop.
    """

    def __init__(self, table: dict[str, torch.Tensor], shared: dict, numbers: list[list[int]] | None, dropout: float):
        self.table, self.shared, self.numbers, self.dropout = table, shared, numbers, dropout

    def choose(self, batch: dict, draws: Draws) -> torch.Tensor | None:
        """Draw a condition of each sample, and return its row of the table."""
        chosen = draws.uniform(
            "cpu"
        ).tolist()  # drawn even if unused: the order of the draws is the same for every set
        if self.numbers is None:
            return None
        rows = [self.numbers[position] for position in batch["position"].tolist()]
        return torch.tensor([r[min(int(u * len(r)), len(r) - 1)] for r, u in zip(rows, chosen)])

    def __call__(self, labels: torch.Tensor | None, draws: Draws) -> dict:
        """Return the rows, some of them dropped, and what is shared."""
        is_dropped = draws.uniform("cpu") < self.dropout
        if labels is None:
            return dict(self.shared)
        last = len(next(iter(self.table.values()))) - 1
        labels = labels.masked_fill(is_dropped, last)
        return self.shared | {name: rows[labels].to(draws.device) for name, rows in self.table.items()}
