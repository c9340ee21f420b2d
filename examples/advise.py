#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Look at an autoencoder and some images before anyone trains, and suggest a projection, a factor and a noise ratio.

    python examples/advise.py --train_data_dir my_images --resolution 256 \
        --pretrained_vae_model_name_or_path my_vae --output out/advice
    accelerate launch examples/train_lowfreq.py --config out/advice/config.json --train_data_dir my_images \
        --pretrained_vae_model_name_or_path my_vae --output_dir out/model

The images are encoded batch by batch and forgotten, except the few of the coupling check. The rule behind the suggestion is
`suggest` below.
"""

import argparse
import json
import os
import platform
import textwrap
from itertools import islice

import torch
from tqdm.auto import tqdm

import diffusers
import diffusers_lowfreq
from diffusers.utils.torch_utils import randn_tensor
from diffusers_lowfreq import LowFreqFlowMatchScheduler, LowFrequencyProjection, fit_projection_basis
from diffusers_lowfreq.autoencoding import (
    encode_images,
    load_autoencoder,
    normalize_latents,
    set_latent_statistics,
)
from diffusers_lowfreq.evaluation import (
    SourceStatistics,
    coupling_check,
    radial_power_spectrum,
    spectrum_frequencies,
)
from diffusers_lowfreq.projections import PROJECTIONS
from diffusers_lowfreq.training import keyed_generator, machine_kind
from diffusers_lowfreq.training import options as opt
from diffusers_lowfreq.training.data.load import open_images


FACTORS = (2, 4, 8)
NOISE_RATIOS = (0.0, 0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
MIN_ENERGY = (
    0.75  # that a factor must keep to be worth its coarseness: in the study of docs/evidence.md half was too little
)
TIE = 0.03  # of energy, within which bicubic is preferred
MIN_IDENTITY = 0.999  # share of pairs that an exact assignment must keep
SUGGESTED_NOISE_RATIO = 0.25  # the best of the study in docs/evidence.md


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    opt.add_image_options(parser, resolution=32)
    parser.add_argument("--dataset_config_name")
    parser.add_argument("--pretrained_vae_model_name_or_path", help="any autoencoder of diffusers; none: pixels")
    parser.add_argument("--vae_subfolder")
    opt.add_revision_options(parser)
    parser.add_argument("--num_images", type=opt.count(), default=1000, help="chosen by seed")
    help = "images of the coupling check, kept in memory"
    parser.add_argument("--num_pairs", type=opt.count(least=2), default=500, help=help)
    parser.add_argument("--batch_size", type=opt.size, default=16, help="images per encoder call")
    parser.add_argument("--seed", type=opt.count(least=0), default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to encode")
    parser.add_argument("--output", default="out/advice", help="folder of config.json, advice.json and spectrum.png")
    return parser.parse_args(argv)


def batches(images, indices, batch_size):
    """Yield batches of images in [-1, 1], as float32 tensors of shape (batch, 3, height, width)."""
    readable = (image for _, image in images.decode_all(indices))
    while batch := list(islice(readable, batch_size)):
        yield torch.stack(batch).float() / 127.5 - 1


@torch.no_grad()
def measure(args, images, vae):
    """Read the images once. Return the statistics, the spectrum, the samples of the coupling check and the skipped images."""
    order = torch.randperm(len(images), generator=keyed_generator(args.seed, "images"))
    indices = order[: args.num_images].tolist()
    statistics, power, kept = None, 0.0, []
    with tqdm(total=len(indices), desc="measure", unit=" images") as progress:
        for batch in batches(images, indices, args.batch_size):
            batch = encode_images(vae, batch.to(args.device), normalize=False).float().cpu()
            height, width = batch.shape[-2:]
            if statistics is None:
                factors = [factor for factor in FACTORS if height % factor == width % factor == 0]
                if not factors:
                    raise ValueError(
                        f"`resolution` {args.resolution} must give samples whose sides one of the factors "
                        f"{list(FACTORS)} divides, got {height}x{width}."
                    )
                statistics = SourceStatistics(PROJECTIONS, factors, unit_scale=vae is not None)
            statistics.update(batch)
            # One spectrum for each channel, since its scale is known only at the end
            spectrum = radial_power_spectrum(batch.flatten(0, 1)[:, None])
            power = power + spectrum.unflatten(0, batch.shape[:2]).sum(0)
            kept += batch[: max(0, args.num_pairs - len(kept))].unbind()
            progress.update(len(batch))
    if statistics is None:
        raise ValueError(f"`train_data_dir`: none of the {len(indices)} images can be read. The log above names them.")
    if len(kept) < 2:
        raise ValueError(f"`num_images` must leave at least two readable images for a coupling, got {len(kept)}.")
    if vae is not None:
        set_latent_statistics(vae, statistics.mean.tolist(), statistics.std.tolist())
        power = power / statistics.std[:, None] ** 2
    sample = normalize_latents(vae, torch.stack(kept))
    # In units of Gaussian noise, whose power is spread evenly over height x width frequencies
    power = (power / statistics.num_samples).mean(0) * height * width
    return statistics, power, sample, len(indices) - statistics.num_samples


def couple(noise, statistics, sample):
    """Return the rows of the advice, one for each projection and factor: energy, path length and identity share."""
    gaussian = coupling_check(noise, sample)  # alpha = 1 is the same for all
    rows = []
    with tqdm(
        total=len(statistics.projections) * (len(NOISE_RATIOS) - 1), desc="couple", unit=" couplings"
    ) as progress:
        for projection, factor in statistics.projections:
            checks = []
            for noise_ratio in NOISE_RATIOS[:-1]:
                scheduler = LowFreqFlowMatchScheduler(projection=projection, factor=factor, noise_ratio=noise_ratio)
                checks.append(coupling_check(scheduler.make_source_from_sample(sample, noise), sample))
                progress.update()
            rows.append(
                {
                    "projection": projection,
                    "factor": factor,
                    "energy_kept": statistics.energy_kept(projection, factor),
                    "prior_cost": 1 / factor**2,
                    "path_length": [statistics.path_length(projection, factor, a) for a in NOISE_RATIOS],
                    "identity_share": [check.identity_fraction for check in (*checks, gaussian)],
                    "cost_ratio": [check.cost_ratio for check in (*checks, gaussian)],
                }
            )
    return rows


def fitted_energy(sample, factors):
    """The energy that the projection "pca" keeps at each factor: fitted to one half of the samples, measured on the other."""
    fitted, measured = sample[::2], sample[1::2]
    variance = (measured - measured.mean((0, 2, 3), keepdim=True)).square().sum()
    energy = {}
    for factor in factors:
        projection = LowFrequencyProjection("pca", factor, fit_projection_basis(fitted.split(50), factor))
        energy[factor] = (1 - projection.complement(measured).square().sum() / variance).item()
    return energy


def suggest(rows, num_pairs):
    """
    Choose a row and a noise ratio, and say why.

    1. Projection, for each factor: the one that keeps most energy, or bicubic if it keeps at most `TIE` less.
    2. Factor: the largest whose projection keeps at least `MIN_ENERGY`, or else the smallest.
    3. Noise ratio: `SUGGESTED_NOISE_RATIO`, with a warning if it keeps less than `MIN_IDENTITY` of the pairs.
    """
    best = {}
    for factor in sorted({row["factor"] for row in rows}):
        candidates = [row for row in rows if row["factor"] == factor]
        most = max(candidates, key=lambda row: row["energy_kept"])
        bicubic = next(row for row in candidates if row["projection"] == "bicubic")
        best[factor] = (bicubic if bicubic["energy_kept"] >= most["energy_kept"] - TIE else most), most
    enough = [factor for factor, (row, _) in best.items() if row["energy_kept"] >= MIN_ENERGY]
    factor = max(enough) if enough else min(best)
    row, most = best[factor]
    energy = {f: chosen["energy_kept"] for f, (chosen, _) in best.items()}
    reasons = [*explain_factor(factor, energy), explain_projection(row, most)]
    reasons.append(explain_noise_ratio(row, num_pairs, has_finer=factor > min(best)))
    reasons.append(
        "In high dimension the assignment is passed easily, and more pairs make it harder: a share below 100% is a "
        "warning, 100% says little about the quality of images. After training, choose the noise ratio on generated "
        "coarse latents (`--noise_ratio_range` trains over a range)."
    )
    return {"projection": row["projection"], "factor": factor, "noise_ratio": SUGGESTED_NOISE_RATIO}, reasons


def explain_factor(factor, energy):
    """Say why a factor was chosen, given the energy that each keeps, and what it costs."""
    shares, flow = ", ".join(f"factor {f} {share:.0%}" for f, share in energy.items()), 1 - energy[factor]
    if energy[factor] >= MIN_ENERGY:
        yield (
            f"Factor {factor}: the largest that keeps at least {MIN_ENERGY:.0%} of the energy ({shares}); the flow has "
            f"the other {flow:.0%}."
        )
    else:
        yield (
            f"Factor {factor}: no factor keeps {MIN_ENERGY:.0%} of the energy ({shares}), so this is the smallest. The flow "
            f"has most of the work or nearly so ({flow:.0%} of the energy): expect little from the method with these "
            "samples."
        )
    text = f"At equal patch size and depth a step of the prior model costs about 1/{factor**2} of a step of the flow. "
    if factor < 4:
        text += "That is more than a tenth: give the prior a larger patch size or fewer layers, since the method pays "
        text += "only if the prior is cheap."
    else:
        text += "The method pays only if the prior is that cheap and right in one or two steps."
    finer = max((f for f in energy if f < factor), default=None)
    if finer is not None:
        text += f" Factor {finer} would keep {energy[finer]:.0%} at 1/{finer**2}; "
        text += "which of the two gives better images is not something that this measures."
    yield text


def explain_projection(row, most):
    """Say why a projection was chosen; `most` is the row that keeps the most energy at its factor."""
    if row is most:
        return f"Projection {row['projection']}: it keeps the most energy at this factor."
    return (
        f"Projection bicubic: it keeps {row['energy_kept']:.1%}, {most['projection']} {most['energy_kept']:.1%}; "
        f"within {100 * TIE:.0f} points bicubic is preferred, since its coarse pictures have neither blocks nor "
        "ringing."
    )


def explain_noise_ratio(row, num_pairs, has_finer):
    """Say why the noise ratio was chosen, and how many pairs an exact assignment keeps at it."""
    noise_ratio = SUGGESTED_NOISE_RATIO
    share, path = (dict(zip(NOISE_RATIOS, row[key])) for key in ("identity_share", "path_length"))
    text = f"Noise ratio {noise_ratio}: the best of 0, 0.25, 0.5, 0.75 and 1 in the study of small networks in docs/evidence.md, "
    text += "for two steps and more (the paper takes 0.5). "
    if share[noise_ratio] >= MIN_IDENTITY:
        last = max(a for a in NOISE_RATIOS if share[a] >= MIN_IDENTITY)
        text += f"An exact assignment of {num_pairs} pairs keeps {share[noise_ratio]:.1%} of them, and at least "
        text += f"{MIN_IDENTITY:.1%} up to {last}. "
    else:
        text += (
            f"But an exact assignment of {num_pairs} pairs keeps only {share[noise_ratio]:.1%} of them: pairs cross. "
        )
        text += "Take a finer factor. " if has_finer else ""
    return text + f"The mean squared path is {path[noise_ratio]:.2f} per element, from Gaussian noise {path[1.0]:.2f}."


def tables(rows, fitted, num_pairs):
    """Lay the figures out as text."""
    factors = sorted({row["factor"] for row in rows})
    lines = ["Energy kept by T(x), of the variance about the mean per channel"]
    lines.append(f"{'':12}" + "".join(f"{f'factor {f}':>10}" for f in factors))
    for projection in PROJECTIONS:
        shares = (row["energy_kept"] for row in rows if row["projection"] == projection)
        lines.append(f"{projection:12}" + "".join(f"{share:>10.1%}" for share in shares))
    lines.append(f"{'pca':12}" + "".join(f"{fitted[f]:>10.1%}" for f in factors) + "   fitted to half of the samples")
    lines.append(f"{'prior step':12}" + "".join(f"{1 / f**2:>10.1%}" for f in factors) + "   of a step of the flow")
    for title, key, form in (
        ("Path length E||source - x||^2 per element, by noise ratio", "path_length", ".2f"),
        (f"Share of pairs that an exact assignment of {num_pairs} keeps, by noise ratio", "identity_share", ".1%"),
    ):
        lines += ["", title, f"{'':12}{'factor':>6}" + "".join(f"{a:>8}" for a in NOISE_RATIOS)]
        for row in rows:
            values = "".join(f"{value:>8{form}}" for value in row[key])
            lines.append(f"{row['projection']:12}{row['factor']:>6}{values}")
    return "\n".join(lines)


def draw(path, spectrum, rows, fitted, suggestion, title):
    """Draw the spectrum of samples and source, and the energy kept by factor."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    factors = sorted({row["factor"] for row in rows})
    alpha, factor = suggestion["noise_ratio"], suggestion["factor"]
    frequency, power, source_power = (spectrum[key] for key in ("frequencies", "power", "source_power"))
    # Colours of Okabe and Ito, each with a line style and a marker of its own
    left.loglog(frequency, power, color="#000000", linewidth=2, label="samples")
    label = f"source: {suggestion['projection']}, factor {factor}, noise ratio {alpha}"
    left.loglog(frequency, source_power, color="#D55E00", linewidth=2, linestyle="--", label=label)
    left.axhline(1, color="#0072B2", linewidth=2, linestyle=":", label="Gaussian noise")
    gray = {"fontsize": 9, "color": "0.35"}
    for f in factors:
        left.axvline(0.5 / f, color="0.75", linewidth=1, zorder=0)
        left.annotate(f" factor {f}", (0.5 / f, 0.02), xycoords=("data", "axes fraction"), rotation=90, **gray)
    ticks = [2**k for k in range(1, 12) if 0.5**k >= frequency[0]]
    left.set_xticks([1 / tick for tick in ticks], [f"1/{tick}" for tick in ticks])
    left.minorticks_off()
    left.set(xlabel="radial frequency, cycles per pixel of the sample", ylabel="power, Gaussian noise = 1")
    left.set_title(f"Spectrum of {title}")
    left.legend(fontsize=9)
    for projection, color, line, marker in zip(
        PROJECTIONS, ("#000000", "#D55E00", "#0072B2"), ("-", "--", ":"), "osD"
    ):
        own = [100 * row["energy_kept"] for row in rows if row["projection"] == projection]
        right.plot(factors, own, color=color, linestyle=line, marker=marker, linewidth=2, label=projection)
    own = [100 * fitted[factor] for factor in factors]
    right.plot(factors, own, color="#009E73", linestyle="-.", marker="v", linewidth=2, label="pca (fitted)")
    right.axhline(100 * MIN_ENERGY, color="0.6", linewidth=1, zorder=0)
    text = f" {MIN_ENERGY:.0%}: enough for the suggestion"
    right.annotate(text, (0, 100 * MIN_ENERGY), xycoords=("axes fraction", "data"), va="bottom", **gray)
    right.set_xscale("log", base=2)
    right.set_xticks(factors, [str(f) for f in factors])
    right.minorticks_off()
    right.set(xlabel="factor", ylabel="energy kept by T(x), %", ylim=(0, 103), title="What the coarse latent carries")
    right.legend(fontsize=9, loc="lower left")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def check_output(settings, folder):
    """Refuse a folder with the advice of other settings."""
    path = os.path.join(folder, "advice.json")
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            before = json.load(file).get("settings", {})
        changed = [k for k in settings if before.get(k) != settings[k]]
        if changed:
            raise ValueError(
                f"`output` {folder!r} holds the advice of other settings ({', '.join(changed)}): choose another folder."
            )


def measure_spectrum(sample, noise, power, suggestion):
    """The spectrum of the samples and of their source, in units of Gaussian noise, without the mean over a sample."""
    scheduler = LowFreqFlowMatchScheduler(**suggestion)
    height, width = sample.shape[-2:]
    source = radial_power_spectrum(scheduler.make_source_from_sample(sample, noise)).mean(0) * (height * width)
    # Without frequency zero, which holds the mean: for raw latents it means nothing
    columns = {"frequencies": spectrum_frequencies(height, width), "power": power, "source_power": source}
    return {name: values[1:].tolist() for name, values in columns.items()}


def environment():
    """The machine and the versions that the figures were made with."""
    versions = {
        "diffusers_lowfreq": diffusers_lowfreq.__version__,
        "diffusers": diffusers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return {"machine": machine_kind(), "versions": versions}


def main(args):
    settings = {k: v for k, v in vars(args).items() if k not in ("output", "device", "batch_size")}
    check_output(settings, args.output)
    images = open_images(args, label_column=None)
    options = {"revision": args.revision, "variant": args.variant}
    vae = load_autoencoder(args.pretrained_vae_model_name_or_path, args.vae_subfolder, **options)
    if vae is not None:
        vae = vae.to(args.device).eval()
    statistics, power, sample, skipped = measure(args, images, vae)
    noise = randn_tensor(sample.shape, generator=keyed_generator(args.seed, "noise"))
    rows = couple(noise, statistics, sample)
    suggestion, reasons = suggest(rows, len(sample))
    fitted = fitted_energy(sample, sorted({row["factor"] for row in rows}))
    reasons.append(
        f"The projection pca, fitted to the data, would keep {fitted[suggestion['factor']]:.0%} at this factor "
        f"(`--projection pca`). Its coarse samples are no pictures, all samples must have one size, and it wants a prior "
        "model of several steps; it is an option, not what is suggested."
    )
    spectrum = measure_spectrum(sample, noise, power, suggestion)
    advice = {
        "suggestion": suggestion,
        "reasons": reasons,
        "rule": {
            "least_energy": MIN_ENERGY,
            "bicubic_within": TIE,
            "least_identity_share": MIN_IDENTITY,
            "noise_ratio": SUGGESTED_NOISE_RATIO,
        },
        "settings": settings,
        "num_images": statistics.num_samples,
        "num_images_skipped": skipped,
        "num_pairs": len(sample),
        "autoencoder": None if vae is None else type(vae).__name__,
        "sample_shape": statistics.shape,
        "raw_mean": statistics.mean.tolist(),
        "raw_std": statistics.std.tolist(),
        "scale": "as in training: pixels in [-1, 1]" if vae is None else "zero mean and unit variance per channel",
        "noise_ratios": NOISE_RATIOS,
        "rows": rows,
        "fitted_energy_kept": fitted,
        "spectrum": spectrum,
        **environment(),
    }
    title = f"{'x'.join(map(str, statistics.shape))} {'pixels' if vae is None else 'latents at unit scale'}"
    os.makedirs(args.output, exist_ok=True)
    draw(os.path.join(args.output, "spectrum.png"), spectrum, rows, fitted, suggestion, title)
    for name, value in (("config.json", {"resolution": args.resolution, **suggestion}), ("advice.json", advice)):
        with open(os.path.join(args.output, name), "w", encoding="utf-8") as file:
            json.dump(value, file, indent=1)
    print(f"{statistics.num_samples} images, {skipped} skipped as unreadable: {title}\n")
    print(tables(rows, fitted, len(sample)))
    print(f"\nSuggested: projection {suggestion['projection']}, factor {suggestion['factor']}, ", end="")
    print(f"noise ratio {suggestion['noise_ratio']}")
    for reason in reasons:
        print(textwrap.fill(reason, 110, initial_indent="  - ", subsequent_indent="    "))
    print(f"\nWrote config.json (for train_lowfreq.py --config), advice.json and spectrum.png to {args.output}")


if __name__ == "__main__":
    main(parse_args())
