# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Class labels, for the pipelines whose networks are told a class."""

import numpy as np
import torch


class ClassLabelsMixin:
    """Read class names and numbers, and turn them into what the networks are told."""

    def _register_labels(self, id2label: dict[int, str] | dict[str, str] | None):
        try:
            self.labels = {name: int(str(number)) for number, name in (id2label or {}).items()}
            fits = all(isinstance(name, str) and number >= 0 for name, number in self.labels.items())
        except (AttributeError, TypeError, ValueError):
            fits = False
        if not fits:
            raise ValueError(f"`id2label` must be a dict of class numbers and names, got {id2label!r}.")
        self.register_to_config(id2label=id2label)

    def get_label_ids(self, class_labels: int | str | list[int | str] | torch.Tensor) -> list[int]:
        """
        Map class names, numbers or a mixture to class numbers.

        Raises:
            ValueError: If a name is unknown, a number is out of range, or the model is unconditional.
        """
        if isinstance(class_labels, torch.Tensor):
            if class_labels.is_floating_point() or class_labels.ndim > 1:
                raise ValueError(
                    f"`class_labels` must be a tensor of integers of shape (batch,), got {class_labels.dtype} of shape "
                    f"{tuple(class_labels.shape)}."
                )
            class_labels = class_labels.tolist()
        if isinstance(class_labels, (int, str, np.integer)):
            class_labels = [class_labels]
        if not isinstance(class_labels, (list, tuple, np.ndarray)) or getattr(class_labels, "ndim", 1) == 0:
            raise ValueError(f"`class_labels` must be a class name or number or a list of them, got {class_labels!r}.")
        model = self.prior if self.transformer is None else self.transformer
        num_classes = getattr(model.config, "num_classes", None)
        if num_classes is None:
            raise ValueError("`class_labels` must not be given: this model is unconditional.")
        if not len(class_labels):
            raise ValueError("`class_labels` must hold at least one label, got an empty list.")
        ids = []
        for label in class_labels:
            if isinstance(label, (list, tuple)) and len(label) == 1:  # a column of labels, as DiTPipeline takes it
                label = label[0]
            if isinstance(label, str):
                if label not in self.labels:
                    raise ValueError(f"`class_labels` must be among {sorted(self.labels)}, got {label!r}.")
                label = self.labels[label]
            if isinstance(label, bool) or not isinstance(label, (int, np.integer)) or not 0 <= label < num_classes:
                raise ValueError(
                    f"`class_labels` must be class names or numbers from 0 to {num_classes - 1}, got {label!r}."
                )
            ids.append(int(label))
        return ids

    def encode_labels(
        self, class_labels: int | str | list[int | str] | torch.Tensor | None, num_images_per_prompt: int, device
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor] | None]:
        """Turn labels into what the networks are told, and into what instead in the second call of guidance: no label."""
        if class_labels is None:
            return {}, None
        ids = self.get_label_ids(class_labels)
        labels = torch.tensor(ids, device=device).repeat_interleave(num_images_per_prompt)
        model = self.prior if self.transformer is None else self.transformer
        return {"class_labels": labels}, {"class_labels": torch.full_like(labels, model.config.num_classes)}
