# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""One small diffusion transformer, for both the flow and the prior model."""

from functools import wraps
from pathlib import Path

import torch
import torch.nn as nn

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin, AttentionModuleMixin, FeedForward
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import apply_lora_scale

from ..guards.versions import VersionedConfigMixin
from ..guards.weights import check_weights, refuse_missing, without_adapters
from .inputs import check_config, check_inputs


def rotary_angles(height: int, width: int, head_dim: int, device: torch.device) -> torch.Tensor:
    """Compute the angles `(height * width, head_dim / 2)` of 2-D RoPE: half of them by row, half by column."""
    frequency = 100.0 ** -(torch.arange(head_dim // 4, dtype=torch.float32, device=device) / (head_dim // 4))
    rows = torch.arange(height, dtype=torch.float32, device=device)[:, None] * frequency
    columns = torch.arange(width, dtype=torch.float32, device=device)[:, None] * frequency
    rows = rows[:, None].expand(height, width, -1)
    columns = columns[None].expand(height, width, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the pairs `(i, i + head_dim / 2)` of `x`, `(batch, tokens, heads, head_dim)`, by the angles of each token."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class LowFreqAttnProcessor:
    """Self-attention with query/key normalisation and rotary positions, by diffusers' attention dispatcher."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self, attn: "LowFreqAttention", hidden_states: torch.Tensor, rotary_emb: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query, key, value = (x.unflatten(-1, (-1, attn.head_dim)) for x in (query, key, value))
        query = rotate(attn.norm_q(query), *rotary_emb)
        key = rotate(attn.norm_k(key), *rotary_emb)
        hidden_states = dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        return attn.to_out[0](hidden_states.flatten(2, 3))


class LowFreqAttention(nn.Module, AttentionModuleMixin):
    """Multi-head self-attention; the arithmetic is in the processor."""

    _default_processor_cls = LowFreqAttnProcessor
    _available_processors = [LowFreqAttnProcessor]

    def __init__(self, dim: int, heads: int, head_dim: int):
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim
        self.use_bias = True
        self.is_cross_attention = False
        self.to_q = nn.Linear(dim, heads * head_dim)
        self.to_k = nn.Linear(dim, heads * head_dim)
        self.to_v = nn.Linear(dim, heads * head_dim)
        self.norm_q = nn.RMSNorm(head_dim, eps=1e-6)
        self.norm_k = nn.RMSNorm(head_dim, eps=1e-6)
        self.to_out = nn.ModuleList([nn.Linear(heads * head_dim, dim)])
        self.set_processor(self._default_processor_cls())

    def forward(self, hidden_states: torch.Tensor, rotary_emb: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return self.processor(self, hidden_states, rotary_emb)


class LowFreqCrossAttnProcessor:
    """Attention from image to text tokens with query/key normalisation, by diffusers' attention dispatcher."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: "LowFreqCrossAttention",
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        query = attn.to_q(hidden_states)
        if attn.fused_projections:
            key, value = attn.to_kv(encoder_hidden_states).chunk(2, dim=-1)
        else:
            key, value = attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        query, key, value = (x.unflatten(-1, (-1, attn.head_dim)) for x in (query, key, value))
        hidden_states = dispatch_attention_fn(
            attn.norm_q(query),
            attn.norm_k(key),
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return attn.to_out[0](hidden_states.flatten(2, 3))


class LowFreqCrossAttention(nn.Module, AttentionModuleMixin):
    """Multi-head attention from image to text tokens; the arithmetic is in the processor."""

    _default_processor_cls = LowFreqCrossAttnProcessor
    _available_processors = [LowFreqCrossAttnProcessor]

    def __init__(self, dim: int, heads: int, head_dim: int):
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim
        self.use_bias = True
        self.is_cross_attention = True
        self.to_q = nn.Linear(dim, heads * head_dim)
        self.to_k = nn.Linear(dim, heads * head_dim)
        self.to_v = nn.Linear(dim, heads * head_dim)
        self.norm_q = nn.RMSNorm(head_dim, eps=1e-6)
        self.norm_k = nn.RMSNorm(head_dim, eps=1e-6)
        self.to_out = nn.ModuleList([nn.Linear(heads * head_dim, dim)])
        nn.init.zeros_(self.to_out[0].weight)  # without a gate, it must start as if there were no text
        nn.init.zeros_(self.to_out[0].bias)
        self.set_processor(self._default_processor_cls())

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return self.processor(self, hidden_states, encoder_hidden_states, attention_mask)


class LowFreqTransformerBlock(nn.Module):
    """
    Attention and feed-forward, each shifted, scaled and gated by the condition (adaLN-zero with shared weights).

    A model of text attends to it between the two, without modulation or gate (arXiv 2310.00426).
    """

    def __init__(self, dim: int, heads: int, head_dim: int, mlp_ratio: float, cross_attention: bool = False):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.attn = LowFreqAttention(dim, heads, head_dim)
        self.norm_cross = self.cross_attn = None
        if cross_attention:
            self.norm_cross = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
            self.cross_attn = LowFreqCrossAttention(dim, heads, head_dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.ff = FeedForward(dim, inner_dim=int(dim * mlp_ratio), activation_fn="gelu-approximate")
        # Added to the modulation that all blocks share. Zero at first, so that the gates start closed.
        self.scale_shift_table = nn.Parameter(torch.zeros(6, dim))

    def forward(
        self,
        hidden_states: torch.Tensor,
        modulation: torch.Tensor,
        rotary_emb: tuple[torch.Tensor, torch.Tensor],
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        table = self.scale_shift_table + modulation  # (batch, 6, dim)
        shift_attn, scale_attn, gate_attn, shift_ff, scale_ff, gate_ff = table.unsqueeze(2).unbind(1)
        x = self.norm1(hidden_states) * (1 + scale_attn) + shift_attn
        hidden_states = hidden_states + gate_attn * self.attn(x, rotary_emb)
        if self.cross_attn is not None:
            x = self.norm_cross(hidden_states)
            hidden_states = hidden_states + self.cross_attn(x, encoder_hidden_states, attention_mask)
        x = self.norm2(hidden_states) * (1 + scale_ff) + shift_ff
        return hidden_states + gate_ff * self.ff(x)


class TimeEmbedding(nn.Module):
    """
    Embed a number in [0, 1] by sinusoids of bounded frequency and a two-layer network.

    The frequencies grow geometrically from 1 to `max_frequency` radians per unit. The embedding then changes slowly enough
    for one-step training, which differentiates in time.
    """

    def __init__(self, dim: int, max_frequency: float, num_frequencies: int = 64, zero_init: bool = False):
        super().__init__()
        self.max_frequency = max_frequency
        self.num_frequencies = num_frequencies
        self.linear_1 = nn.Linear(2 * num_frequencies, dim)
        self.act = nn.SiLU()
        self.linear_2 = nn.Linear(dim, dim)
        if zero_init:
            nn.init.zeros_(self.linear_2.weight)
            nn.init.zeros_(self.linear_2.bias)

    def forward(self, t: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        # float32 up to the sinusoid: bfloat16 cannot tell neighbouring times apart
        exponent = torch.arange(self.num_frequencies, dtype=torch.float32, device=t.device) / (
            self.num_frequencies - 1
        )
        angles = t.float()[:, None] * self.max_frequency**exponent
        embedding = torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype)
        return self.linear_2(self.act(self.linear_1(embedding)))


class LowFreqTransformer2DModel(VersionedConfigMixin, ModelMixin, ConfigMixin, AttentionMixin, PeftAdapterMixin):
    r"""
    A diffusion transformer that predicts the velocity of a flow on images or latents of any size.

    The same class is the flow `v_θ` at full size and the prior model `G_φ` at coarse size. A low-frequency source needs no
    change to the network. This is a DiT (arXiv 2212.09748) with adaLN-zero whose weights are shared by all blocks (arXiv
    2310.00426), 2-D rotary positions, and query/key normalisation.

    Args:
        sample_size (`int` or `list[int]`, defaults to `32`):
            Height and width of the latents it was trained on: the default of pipelines, not a limit.
        patch_size (`int`, defaults to `2`):
            Side of the square patch that becomes one token.
        in_channels (`int`, defaults to `4`):
            Channels of input and output.
        num_layers (`int`, defaults to `12`), num_attention_heads (`int`, defaults to `6`), attention_head_dim (`int`, defaults to `64`):
            Depth, heads, and width of a head (a multiple of 4). The width of the model is heads times head width.
        mlp_ratio (`float`, defaults to `4.0`):
            Width of the feed-forward layer relative to the model.
        num_classes (`int`, *optional*):
            Number of class labels. One more embedding means "no label". Omitted: no labels.
        caption_channels (`int`, *optional*):
            Width of the text embeddings that every block attends to; not together with `num_classes`. Omitted: no text, and
            no layers for it.
        time_max_frequency (`float`, defaults to `32.0`):
            Highest frequency of the time embedding, in radians per unit of `timestep / 1000`.
        use_meanflow (`bool`, defaults to `False`):
            Accept a second time, `timestep_r`, and predict the mean velocity down to it. This makes a one-step model. The
            last layer of the new embedding starts at zero, so a flow checkpoint keeps its predictions.
        guidance_scale (`float`, *optional*):
            The classifier-free guidance that training folds into the output of a one-step model. Pipelines use this scale
            and need no second pass.
        guidance_scale_range (`list[float]`, *optional*):
            Accept `guidance`, for training over a range of scales. `guidance_scale` is then the default. Starts at zero
            too.
        use_noise_ratio (`bool`, defaults to `False`):
            Accept the `noise_ratio` of the source, for training over a range of it. Starts at zero too.
        sample_mean (`list[float]`, *optional*), sample_std (`list[float]`, *optional*):
            Mean and standard deviation per channel of the data, before it was brought to unit scale. Set on prior models,
            since `D(x)` has a smaller scale than `x`. [`LowFreqPipeline`] undoes the scaling.

    Raises:
        ValueError: If a setting is not allowed, or does not fit the others; it is named.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["LowFreqTransformerBlock"]
    _repeated_blocks = ["LowFreqTransformerBlock"]
    _skip_layerwise_casting_patterns = ["time_embed", "proj_in", "norm", "scale_shift_table"]
    _supports_group_offloading = True

    @register_to_config
    def __init__(
        self,
        sample_size: int | list[int] = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        num_layers: int = 12,
        num_attention_heads: int = 6,
        attention_head_dim: int = 64,
        mlp_ratio: float = 4.0,
        num_classes: int | None = None,
        caption_channels: int | None = None,
        time_max_frequency: float = 32.0,
        use_meanflow: bool = False,
        guidance_scale: float | None = None,
        guidance_scale_range: list[float] | None = None,
        use_noise_ratio: bool = False,
        sample_mean: list[float] | None = None,
        sample_std: list[float] | None = None,
    ):
        super().__init__()
        check_config(self.config)
        dim = num_attention_heads * attention_head_dim

        self.proj_in = nn.Linear(in_channels * patch_size**2, dim)
        self.time_embed = TimeEmbedding(dim, time_max_frequency)
        if use_meanflow:
            self.time_embed_r = TimeEmbedding(dim, time_max_frequency, zero_init=True)
        if guidance_scale_range is not None:
            self.time_embed_guidance = TimeEmbedding(dim, time_max_frequency, zero_init=True)
        if use_noise_ratio:
            self.time_embed_noise_ratio = TimeEmbedding(dim, time_max_frequency, zero_init=True)
        if num_classes is not None:
            self.class_embed = nn.Embedding(num_classes + 1, dim)
            nn.init.normal_(self.class_embed.weight, std=0.02)
        if caption_channels is not None:
            self.caption_norm = nn.RMSNorm(caption_channels, eps=1e-6)  # encoders differ in scale
            self.caption_projection = nn.Linear(caption_channels, dim)
        self.act = nn.SiLU()
        self.modulation = nn.Linear(dim, 6 * dim)
        self.transformer_blocks = nn.ModuleList(
            [
                LowFreqTransformerBlock(
                    dim, num_attention_heads, attention_head_dim, mlp_ratio, caption_channels is not None
                )
                for _ in range(num_layers)
            ]
        )
        self.norm_out = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.modulation_out = nn.Linear(dim, 2 * dim)
        self.proj_out = nn.Linear(dim, in_channels * patch_size**2)
        for linear in (self.modulation, self.modulation_out, self.proj_out):  # adaLN-zero: starts as v = 0
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.gradient_checkpointing = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """
        Load a model as `ModelMixin.from_pretrained` does, from safetensors files only.

        Raises:
            ValueError: If `use_safetensors` is False, or a tensor has another shape. The error names the file and the tensor.
            OSError: If there is no safetensors file, or it lacks a tensor. The error names both.
        """
        if kwargs.get("use_safetensors") is False:
            raise ValueError("`use_safetensors` must be True: pickles are not loaded, got False.")
        with_info = kwargs.pop("output_loading_info", False)
        kwargs |= {"use_safetensors": True, "output_loading_info": True}
        folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        try:
            model, info = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
            missing = info["missing_keys"]
        except (ValueError, RuntimeError):
            if (folder / "config.json").is_file():
                check_weights(cls, folder, kwargs.get("variant"))  # names the file, which diffusers does not
            raise
        if (folder / "config.json").is_file() and (missing or any(folder.glob("*.index*.json"))):  # shards may lie
            check_weights(cls, folder, kwargs.get("variant"))
        refuse_missing(str(folder), missing, info["unexpected_keys"])
        return (model, info) if with_info else model

    @wraps(ModelMixin.save_pretrained, assigned=(), updated=())  # diffusers reads which arguments it takes
    def save_pretrained(self, save_directory, *args, **kwargs):
        """
        Save a model as `ModelMixin.save_pretrained` does, without its LoRAs.

        A fused LoRA is a part of the weights, and stays. A warning says what is not saved.
        """
        super(LowFreqTransformer2DModel, without_adapters(self)).save_pretrained(save_directory, *args, **kwargs)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """The shape `(channels, height, width)` of the samples that the model was trained on."""
        size = self.config.sample_size
        return (self.config.in_channels, *([size] * 2 if isinstance(size, int) else size))

    def normalize(self, sample: torch.Tensor) -> torch.Tensor:
        """
        Bring samples `(batch, channels, height, width)` to the unit scale that the model works at.

        It is `(sample - sample_mean) / sample_std`, or the samples themselves where the model has no statistics.
        """
        if self.config.sample_std is None:
            return sample
        mean, std = self._statistics(sample)
        return (sample - mean) / std

    def denormalize(self, sample: torch.Tensor) -> torch.Tensor:
        """Undo [`~LowFreqTransformer2DModel.normalize`]: `sample * sample_std + sample_mean`."""
        if self.config.sample_std is None:
            return sample
        mean, std = self._statistics(sample)
        return sample * std + mean

    def _statistics(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        statistics = (self.config.sample_mean, self.config.sample_std)
        mean, std = (like.new_tensor(values).view(-1, 1, 1) for values in statistics)
        return mean, std

    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        timestep_r: torch.Tensor | None = None,
        noise_ratio: torch.Tensor | None = None,
        guidance: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        attention_kwargs: dict | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple:
        """
        Predict the velocity `source - x` (or, between two times, its mean).

        Args:
            hidden_states (`torch.Tensor` of shape `(batch, in_channels, height, width)`):
                The state at `timestep`. Height and width are multiples of `patch_size`.
            timestep (`torch.Tensor` of shape `(batch,)` or `()`):
                The time in 0…1000: 1000 is the source, 0 is data. Kept in float32 up to the sinusoid.
            class_labels (`torch.Tensor` of shape `(batch,)`, *optional*):
                Class numbers. `num_classes` means "no label", and so does leaving it out.
            timestep_r (`torch.Tensor` of shape `(batch,)` or `()`, *optional*):
                The end of a step, at most `timestep` and on the same scale. The output is then the mean velocity over the
                step. Omitted: `timestep` itself, the plain velocity. Needs `use_meanflow`.
            noise_ratio (`torch.Tensor` of shape `(batch,)`, *optional*):
                The share of noise in the source, required with `use_noise_ratio` and refused without.
            guidance (`torch.Tensor` of shape `(batch,)`, *optional*):
                The guidance scale, at least 1, required with `guidance_scale_range` and refused without.
            encoder_hidden_states (`torch.Tensor` of shape `(batch, text_tokens, caption_channels)`, *optional*):
                Text embeddings, required with `caption_channels` and refused without. The embedding of the empty string
                means "no text".
            encoder_attention_mask (`torch.Tensor` of shape `(batch, text_tokens)`, *optional*):
                True, or 1, for the text tokens that are not padding, at least one in each row. Omitted: all of them.
            attention_kwargs (`dict`, *optional*):
                `{"scale": float}` sets the weight of a LoRA.
            return_dict (`bool`, defaults to `True`):
                Whether to return a `Transformer2DModelOutput` rather than a tuple `(sample,)`.

        Returns:
            `Transformer2DModelOutput` or `tuple`: The velocity, `(batch, in_channels, height, width)`.

        Raises:
            ValueError: If an input does not fit the configuration.
        """
        inputs = {"timestep": timestep, "timestep_r": timestep_r, "noise_ratio": noise_ratio, "guidance": guidance}
        inputs |= {"class_labels": class_labels, "encoder_hidden_states": encoder_hidden_states}
        check_inputs(self.config, hidden_states, inputs, encoder_attention_mask)
        batch, channels, height, width = hidden_states.shape
        dtype, p = hidden_states.dtype, self.config.patch_size

        # Time, labels and other numbers modulate all tokens alike
        condition = self.time_embed(timestep.expand(batch) / 1000, dtype)
        if self.config.use_meanflow:
            step = timestep - timestep_r if timestep_r is not None else torch.zeros_like(timestep)
            condition = condition + self.time_embed_r(step.expand(batch) / 1000, dtype)
        if noise_ratio is not None:
            condition = condition + self.time_embed_noise_ratio(noise_ratio.expand(batch), dtype)
        if guidance is not None:
            condition = condition + self.time_embed_guidance(1 - 1 / guidance.float().expand(batch), dtype)
        if self.config.num_classes is not None:
            if class_labels is None:
                class_labels = torch.full((batch,), self.config.num_classes, device=hidden_states.device)
            condition = condition + self.class_embed(class_labels)
        condition = self.act(condition)
        modulation = self.modulation(condition).unflatten(-1, (6, -1))
        text = ()
        if encoder_hidden_states is not None:
            tokens = self.caption_projection(self.caption_norm(encoder_hidden_states.to(dtype)))
            mask = encoder_attention_mask
            text = (
                tokens,
                None if mask is None else mask.bool()[:, None, None],
            )  # the same for all heads and image tokens

        # (batch, channels, height, width) -> (batch, tokens, channels * patch * patch)
        h, w = height // p, width // p
        hidden_states = hidden_states.reshape(batch, channels, h, p, w, p).permute(0, 2, 4, 1, 3, 5)
        hidden_states = self.proj_in(hidden_states.reshape(batch, h * w, channels * p * p))
        angles = rotary_angles(h, w, self.config.attention_head_dim, hidden_states.device)
        rotary_emb = (angles.cos().to(dtype)[:, None], angles.sin().to(dtype)[:, None])

        for block in self.transformer_blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(block, hidden_states, modulation, rotary_emb, *text)
            else:
                hidden_states = block(hidden_states, modulation, rotary_emb, *text)

        scale, shift = self.modulation_out(condition).unsqueeze(1).chunk(2, dim=-1)
        hidden_states = self.proj_out(self.norm_out(hidden_states) * (1 + scale) + shift)
        sample = hidden_states.reshape(batch, h, w, channels, p, p).permute(0, 3, 1, 4, 2, 5)
        sample = sample.reshape(batch, channels, height, width)
        if not return_dict:
            return (sample,)
        return Transformer2DModelOutput(sample=sample)
