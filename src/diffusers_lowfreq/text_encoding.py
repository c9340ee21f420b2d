# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""From prompts to text embeddings, for the CLIP and T5 encoders of transformers."""

import hashlib
import json
import os

import torch
from safetensors import SafetensorError

from diffusers.utils import logging

from .guards.files import check_shards
from .guards.values import is_integer
from .guards.weights import refuse_missing


logger = logging.get_logger(__name__)

MAX_TOKENS = 256  # for an encoder without a limit, such as T5
ENCODERS = {"clip": "CLIPTextModel", "clip_text_model": "CLIPTextModel", "t5": "T5EncoderModel"}  # by `model_type`


def load_text_encoder(
    name_or_path: str, subfolder: str | None = None, tokenizer_subfolder: str | None = None, **kwargs
) -> tuple:
    """
    Load a CLIP or T5 text encoder of transformers and its tokenizer, from safetensors files only.

    Args:
        name_or_path (`str`):
            A folder or a name on the Hub.
        subfolder (`str`, *optional*), tokenizer_subfolder (`str`, *optional*):
            The subfolders that hold them: `"text_encoder"` and `"tokenizer"` in a pipeline.
        kwargs:
            Further arguments of both `from_pretrained` methods, such as `revision`.

    Returns:
        `tuple`: The encoder, frozen and in evaluation mode, and the tokenizer.

    Raises:
        ValueError: If one of them is missing, the encoder is neither CLIP nor T5, or its weights lack a tensor.
    """
    import transformers

    message = (
        "`pretrained_text_encoder_name_or_path` must be the folder or the Hub name of a CLIP or T5 encoder in safetensors and "
        "of its tokenizer (`text_encoder_subfolder` text_encoder and `tokenizer_subfolder` tokenizer for those of a "
        f"pipeline), got {name_or_path!r}"
    )
    for name, folder in (("text_encoder_subfolder", subfolder), ("tokenizer_subfolder", tokenizer_subfolder)):
        if folder and os.path.isdir(name_or_path) and not os.path.isdir(os.path.join(name_or_path, folder)):
            raise ValueError(f"{message} with `{name}` {folder!r}, which is not there.")
    kwargs = {"trust_remote_code": False} | kwargs  # by default, transformers asks at the terminal
    try:
        config = transformers.AutoConfig.from_pretrained(name_or_path, subfolder=subfolder or "", **kwargs)
        if config.model_type not in ENCODERS:
            raise ValueError(f"it is of type {config.model_type!r}, not among {sorted(ENCODERS)}.")
        check_shards(os.path.join(name_or_path, subfolder or ""))
        encoder = getattr(transformers, ENCODERS[config.model_type])
        options = {"subfolder": subfolder or "", "use_safetensors": True, "output_loading_info": True} | kwargs
        encoder, information = encoder.from_pretrained(name_or_path, **options)
        refuse_missing(os.path.join(name_or_path, subfolder or ""), list(information["missing_keys"]))
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            name_or_path, subfolder=tokenizer_subfolder or "", **kwargs
        )
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"{message}: {error}") from error
    return encoder.requires_grad_(False).eval(), tokenizer


def max_tokens(text_encoder, tokenizer) -> int:
    """Return how many tokens the encoder and its tokenizer accept; `MAX_TOKENS` if the encoder has no limit."""
    return min(tokenizer.model_max_length, getattr(text_encoder.config, "max_position_embeddings", MAX_TOKENS))


def fingerprint(text_encoder, tokenizer) -> str:
    """Return a hash of everything that embeddings depend on, other than the text."""
    probe = tokenizer(
        "A probe: how words, cases and marks are cut, and what is put around them.", verbose=False
    ).input_ids
    config = {k: v for k, v in text_encoder.config.to_diff_dict().items() if not k.startswith(("_", "transformers_"))}
    facts = [type(text_encoder).__name__, config, max_tokens(text_encoder, tokenizer), tokenizer.get_vocab(), probe]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, value in sorted(text_encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def encode_text(
    text_encoder,
    tokenizer,
    prompts: list[str],
    max_sequence_length: int | None = None,
    device: torch.device | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Encode prompts, padded to the longest of them. A prompt that is too long is cut, and a warning says where.

    Args:
        text_encoder (`CLIPTextModel` or `T5EncoderModel`):
            The encoder.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        prompts (`list[str]`):
            The prompts.
        max_sequence_length (`int`, *optional*):
            The maximum number of tokens of a prompt. By default the limit of the encoder, or 256 if it has none.
        device (`torch.device`, *optional*):
            The device of the encoder, by default that of its parameters.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]` of shapes `(batch, text_tokens, width)` and `(batch, text_tokens)`:
        The last hidden states, and a boolean mask that is false for padding.

    Raises:
        ValueError: If `max_sequence_length` is above the limit, the tokenizer cannot pad, or a prompt has no token.
    """
    limit = max_tokens(text_encoder, tokenizer)
    max_sequence_length = limit if max_sequence_length is None else max_sequence_length
    if not is_integer(max_sequence_length) or not 1 <= max_sequence_length <= limit:
        raise ValueError(
            f"`max_sequence_length` must be from 1 to {limit}, the limit of the `text_encoder`, got {max_sequence_length}."
        )
    if tokenizer.pad_token is None:
        raise ValueError("`tokenizer` must have a token for padding, got None.")
    tokens = tokenizer(
        prompts, padding="longest", truncation=True, max_length=max_sequence_length, return_tensors="pt"
    )
    lengths = tokens.attention_mask.sum(1).tolist()
    untruncated = tokenizer(prompts, truncation=False, verbose=False).input_ids
    for prompt, ids, length in zip(prompts, untruncated, lengths):
        if not length:
            raise ValueError(
                f"`tokenizer` must make a token of every prompt, at least one for its end, got none for {prompt!r}."
            )
        if len(ids) > length:
            logger.warning(
                f"The following part of your input was truncated because the text encoder only takes {max_sequence_length} "
                f"tokens: {tokenizer.decode(ids[length - 1 : -1])!r}"
            )
    device = text_encoder.device if device is None else device
    ids, mask = tokens.input_ids.to(device), tokens.attention_mask.to(device)
    return text_encoder(ids, attention_mask=mask).last_hidden_state, mask.bool()
