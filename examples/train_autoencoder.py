#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Train a small `AutoencoderKL` on your own images, for when no pretrained autoencoder fits.

    accelerate launch examples/train_autoencoder.py --config examples/configs/cifar10_autoencoder.json \
        --dataset_name uoft-cs/cifar10 --image_column img --output_dir out/vae

The loss is the reconstruction error (squared and absolute) plus a small KL term. With some probability, the latent and the image
are both projected on their low frequencies before decoding. The decoder so learns that a coarse latent means a coarse image (scale
equivariance, after EQ-VAE, arXiv 2502.09509): the spectrum of the latents becomes more like that of images, and a low-frequency
prior has more to hold on to.
"""

import argparse

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from diffusers import AutoencoderKL
from diffusers_lowfreq import LowFrequencyProjection
from diffusers_lowfreq.projections import PROJECTIONS
from diffusers_lowfreq.training import (
    LatentCache,
    Run,
    check_engine,
    check_output_dir,
    check_processes,
    describe_images,
    make_accelerator,
    parse_with_config,
)
from diffusers_lowfreq.training import options as opt
from diffusers_lowfreq.training.data.load import open_images
from diffusers_lowfreq.training.options import free
from diffusers_lowfreq.training.validation import measure_psnr


def channels(text):
    """Read a width of the autoencoder."""
    value = int(text)
    if not 8 <= value <= opt.MAX_SIZE or value % 8:
        raise argparse.ArgumentTypeError(f"must be positive multiples of 8, at most {opt.MAX_SIZE}, got {value}")
    return value


def parse_args(argv=None):
    parser = opt.make_parser(__doc__)
    opt.add_image_options(parser, resolution=32)
    free(parser.add_argument("--cache_dir", help="folder of the cache of decoded images, by default output_dir/cache"))
    parser.add_argument("--block_out_channels", type=channels, nargs="+", default=[16, 32, 64])
    parser.add_argument("--layers_per_block", type=opt.size, default=1)
    parser.add_argument("--latent_channels", type=opt.size, default=8)
    parser.add_argument("--kl_weight", type=opt.not_negative, default=1e-5)
    parser.add_argument("--l1_weight", type=opt.not_negative, default=0.1)
    parser.add_argument("--equivariance_probability", type=opt.share, default=0.25)
    opt.add_projection_options(parser, PROJECTIONS, factor=2, help="of the equivariance term")
    opt.add_step_options(parser, train_batch_size=32, max_train_steps=5000, learning_rate=1e-3, lr_warmup_steps=200)
    opt.add_checkpoint_options(parser, checkpoints_total_limit=2)
    parser.add_argument("--num_validation_images", type=opt.size, default=512, help="held out from training")
    return parse_with_config(parser, argv)


class CoarseAutoencoder(torch.nn.Module):
    """Encode, project the latents of some samples, decode: in one forward pass, so that gradients are synchronised."""

    def __init__(self, vae, projection):
        super().__init__()
        self.vae = vae
        self.projection = projection

    def forward(self, x, coarse, generators):
        posterior = self.vae.encode(x).latent_dist
        z = posterior.sample(generators)
        z = torch.where(coarse, self.projection(z), z)
        return self.vae.decode(z).sample, posterior.kl()


def make_vae(args):
    """Build the autoencoder; the seed sets its first weights only, since every draw of the training has its own key."""
    torch.manual_seed(args.seed)
    levels = len(args.block_out_channels)
    return AutoencoderKL(
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


def check_resolution(args):
    """Refuse images that the levels of the autoencoder, or the equivariance term, do not divide."""
    levels = len(args.block_out_channels)
    multiple = 2 ** (levels - 1) * (args.factor if args.equivariance_probability else 1)
    if args.resolution % multiple:
        raise ValueError(
            f"`resolution` must be a multiple of {multiple} ({levels} levels, and `factor` {args.factor} of the "
            f"equivariance term), got {args.resolution}."
        )


def main(args):
    accelerator = make_accelerator(args)
    check_engine(accelerator, data_parallel_only=True)
    check_resolution(args)
    images = open_images(args, label_column=None)
    image_facts = describe_images(images)
    check_output_dir(args, image_facts)
    check_processes(accelerator, images)
    with accelerator.main_process_first():
        cache = LatentCache.build(images, None, args.cache_dir or f"{args.output_dir}/cache", progress=tqdm)
    num_train = len(cache) - args.num_validation_images
    if num_train < 1:
        raise ValueError(
            f"`num_validation_images` must be below the {len(cache)} images, got {args.num_validation_images}."
        )

    vae, projection = make_vae(args), LowFrequencyProjection(args.projection, args.factor)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    run = Run(
        accelerator,
        args,
        CoarseAutoencoder(vae, projection),
        optimizer,
        batch_size=args.train_batch_size,
        max_train_steps=args.max_train_steps,
        logging_steps=50,
        validation_steps=args.checkpointing_steps,
        tracker="train_autoencoder",
        images=image_facts,
    )
    run.resume()
    # Chosen by seed, since many sets are sorted by class
    order = torch.randperm(len(cache), generator=torch.Generator().manual_seed(args.seed)).tolist()
    train_indices, validation_indices = order[:num_train], order[num_train:]
    sampler = run.sampler(num_train)
    loader = (cache.__getitems__([(train_indices[i], flip) for i, flip in entries]) for entries in sampler)

    def validate():
        psnr = measure_psnr(vae, cache, validation_indices, run.device)
        run.log({"psnr": psnr})
        run.write(f"step {run.step}: PSNR {psnr:.2f} dB on {len(validation_indices)} held-out images")

    for batch, draws in run.batches(loader, sampler, validate):
        x = batch["sample"].to(run.device).contiguous(memory_format=torch.channels_last)
        with run.autocast():
            coarse = draws.uniform()[:, None, None, None] < args.equivariance_probability
            target = torch.where(coarse, projection(x), x)
            decoded, kl = run.model(x, coarse, draws.generators)
            reconstruction = F.mse_loss(decoded, target) + args.l1_weight * F.l1_loss(decoded, target)
            loss = reconstruction + args.kl_weight * kl.mean()
        run.take(loss)

    if accelerator.is_main_process:  # only now: the folder may hold the autoencoder of an earlier run
        vae.save_pretrained(args.output_dir)
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(parse_args())
