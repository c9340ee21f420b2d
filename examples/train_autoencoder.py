#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Train a small `AutoencoderKL` on your own images, for when no pretrained autoencoder fits.

    accelerate launch examples/train_autoencoder.py --config examples/configs/cifar10_autoencoder.json \
        --dataset_name uoft-cs/cifar10 --image_column img --output_dir out/vae

The loss is reconstruction (squared error and absolute error) plus a small KL term. With some probability the latent
and the image are both projected on their low frequencies before decoding, so that the decoder learns that a coarse
latent means a coarse image (scale equivariance, after EQ-VAE, arXiv 2502.09509): the spectrum of the latents becomes
more like that of images, and a low-frequency prior has more to hold on to.
"""

import argparse
import time

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from tqdm.auto import tqdm

from diffusers import AutoencoderKL
from diffusers_lowfreq import LowFrequencyProjection
from diffusers_lowfreq.projections import PROJECTIONS
from diffusers_lowfreq.training import (
    LR_SCHEDULERS,
    GradientGuard,
    KeyedBatchSampler,
    LatentCache,
    Termination,
    check_engine,
    check_processes,
    get_lr_scheduler,
    load_images,
    parse_with_config,
    register_schedule,
    resume_checkpoint,
    save_checkpoint,
    uniform,
)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", help="JSON file of overrides of the defaults below")
    parser.add_argument("--dataset_name", help="name of a dataset on the Hub")
    parser.add_argument("--train_data_dir", help="local folder of images or parquet files, or one parquet file")
    parser.add_argument("--image_column", default="image")
    parser.add_argument(
        "--cache_dir", default=None, help="where the decoded images are kept (default: output_dir/cache)"
    )
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--block_out_channels", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--layers_per_block", type=int, default=1)
    parser.add_argument("--latent_channels", type=int, default=8)
    parser.add_argument("--kl_weight", type=float, default=1e-5)
    parser.add_argument("--l1_weight", type=float, default=0.1)
    parser.add_argument("--equivariance_probability", type=float, default=0.25)
    parser.add_argument(
        "--projection", choices=PROJECTIONS, default="bicubic", help="projection of the equivariance term"
    )
    parser.add_argument("--factor", type=int, default=2, help="factor of the equivariance term")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train_batch_size", type=int, default=32)
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--max_train_steps", type=int, default=5000)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--lr_scheduler", choices=LR_SCHEDULERS, default="cosine")
    parser.add_argument("--lr_warmup_steps", type=int, default=200)
    parser.add_argument("--max_grad_norm", type=float, default=1.0)
    parser.add_argument("--random_flip", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], default=None)
    parser.add_argument("--num_validation_images", type=int, default=512, help="held out from training")
    parser.add_argument("--checkpointing_steps", type=int, default=500)
    parser.add_argument("--checkpoints_total_limit", type=int, default=2)
    parser.add_argument("--resume_from_checkpoint", help="a checkpoint folder, or `latest`")
    parser.add_argument("--report_to", default=None)
    args = parse_with_config(parser, argv)

    positive = "resolution factor latent_channels layers_per_block train_batch_size gradient_accumulation_steps "
    positive += "max_train_steps num_validation_images checkpointing_steps checkpoints_total_limit"
    for name in positive.split():
        if getattr(args, name) < 1:
            parser.error(f"argument --{name}: must be positive, got {getattr(args, name)}")
    if any(channels < 8 or channels % 8 for channels in args.block_out_channels):
        parser.error(f"argument --block_out_channels: must be positive multiples of 8, got {args.block_out_channels}")
    if not 0 <= args.equivariance_probability <= 1:
        parser.error(f"argument --equivariance_probability: must be in [0, 1], got {args.equivariance_probability}")
    return args


class CoarseAutoencoder(torch.nn.Module):
    """Encode, project the latents of some samples, decode: one forward, so that gradients are synchronised."""

    def __init__(self, vae, projection):
        super().__init__()
        self.vae = vae
        self.projection = projection

    def forward(self, x, coarse, generators):
        posterior = self.vae.encode(x).latent_dist
        z = posterior.sample(generators)
        z = torch.where(coarse, self.projection(z), z)
        return self.vae.decode(z).sample, posterior.kl()


@torch.no_grad()
def validate(vae, cache, indices, device):
    """Mean PSNR in dB over held-out images, with values in [0, 1]."""
    psnr = []
    for start in range(0, len(indices), 64):
        images = cache.__getitems__([(i, False) for i in indices[start : start + 64]])["sample"].to(device)
        decoded = vae.decode(vae.encode(images).latent_dist.mode()).sample.clamp(-1, 1)
        mse = ((decoded - images) / 2).square().flatten(1).mean(1)
        psnr.append(-10 * mse.clamp(min=1e-10).log10())
    return torch.cat(psnr).mean().item()


def main(args):
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=args.report_to,
        project_config=ProjectConfiguration(project_dir=args.output_dir, logging_dir=f"{args.output_dir}/logs"),
    )
    check_engine(accelerator, data_parallel_only=True)
    levels = len(args.block_out_channels)
    multiple = 2 ** (levels - 1) * (args.factor if args.equivariance_probability else 1)
    if args.resolution % multiple:
        raise ValueError(
            f"`resolution` must be a multiple of {multiple} ({levels} levels, and `factor` {args.factor} of the "
            f"equivariance term), got {args.resolution}."
        )
    images = load_images(
        args.dataset_name,
        args.train_data_dir,
        resolution=args.resolution,
        image_column=args.image_column,
        label_column=None,
    )
    check_processes(accelerator, images)
    with accelerator.main_process_first():
        cache = LatentCache.build(images, None, args.cache_dir or f"{args.output_dir}/cache", progress=tqdm)
    num_train = len(cache) - args.num_validation_images
    if num_train < 1:
        raise ValueError(
            f"`num_validation_images` must be below the {len(cache)} images, got {args.num_validation_images}."
        )

    torch.manual_seed(args.seed)  # initial weights only: every draw of the training is keyed
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(args.block_out_channels),
        layers_per_block=args.layers_per_block,
        latent_channels=args.latent_channels,
        norm_num_groups=8,
        sample_size=args.resolution,
        scaling_factor=1.0,
        force_upcast=False,
        mid_block_add_attention=False,
    ).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    lr_scheduler = get_lr_scheduler(args.lr_scheduler, optimizer, args.lr_warmup_steps, args.max_train_steps)
    projection = LowFrequencyProjection(args.projection, args.factor)
    autoencoder, optimizer = accelerator.prepare(CoarseAutoencoder(vae, projection), optimizer)
    register_schedule(accelerator, lr_scheduler)
    # Validation images are chosen by seed, since many sets are sorted by class.
    order = torch.randperm(len(cache), generator=torch.Generator().manual_seed(args.seed)).tolist()
    train_indices, val_indices = order[:num_train], order[num_train:]

    global_batch_size = args.train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
    step = resume_checkpoint(accelerator, args, global_batch_size) if args.resume_from_checkpoint else 0
    sampler = KeyedBatchSampler(
        num_train,
        args.train_batch_size,
        args.seed,
        range(step, args.max_train_steps),
        args.gradient_accumulation_steps,
        accelerator.process_index,
        accelerator.num_processes,
        args.random_flip,
    )
    if args.report_to:
        accelerator.init_trackers("train_autoencoder")
    progress = tqdm(total=args.max_train_steps, initial=step, disable=not accelerator.is_main_process)
    guard, terminated = GradientGuard(accelerator), Termination(accelerator)
    since, micro_step = time.monotonic(), 0
    for entries in sampler:
        x = cache.__getitems__([(train_indices[i], flip) for i, flip in entries])["sample"].to(accelerator.device)
        x = x.contiguous(memory_format=torch.channels_last)
        generators = sampler.generators(step, micro_step)
        with accelerator.accumulate(autoencoder), accelerator.autocast():
            coarse = uniform(len(x), generators, x.device)[:, None, None, None] < args.equivariance_probability
            target = torch.where(coarse, projection(x), x)
            decoded, kl = autoencoder(x, coarse, generators)
            reconstruction = F.mse_loss(decoded, target) + args.l1_weight * F.l1_loss(decoded, target)
            loss = reconstruction + args.kl_weight * kl.mean()
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                guard.clip(autoencoder.parameters(), args.max_grad_norm, optimizer, step + 1)
            optimizer.step()
            optimizer.zero_grad()
        micro_step = (micro_step + 1) % args.gradient_accumulation_steps
        if micro_step:
            continue
        lr_scheduler.step()
        step += 1
        progress.update()
        if step % 50 == 0:
            rate = 50 * global_batch_size / (time.monotonic() - since)
            since = time.monotonic()
            logs = {"loss": loss.item(), "images_per_second": rate, "lr": lr_scheduler.get_last_lr()[0]}
            progress.set_postfix(loss=f"{logs['loss']:.4f}", images_per_second=f"{rate:.0f}")
            accelerator.log(logs, step)
        is_last = step == args.max_train_steps or terminated()
        if step % args.checkpointing_steps == 0 or is_last:
            path = save_checkpoint(accelerator, args, step, global_batch_size)
            if is_last and step < args.max_train_steps:
                terminated.leave(path)
            if accelerator.is_main_process:
                psnr = validate(vae, cache, val_indices, accelerator.device)
                accelerator.log({"psnr": psnr}, step)
                progress.write(f"step {step}: PSNR {psnr:.2f} dB on {len(val_indices)} held-out images")
                vae.save_pretrained(args.output_dir)

    terminated.restore()
    accelerator.end_training()


if __name__ == "__main__":
    main(parse_args())
