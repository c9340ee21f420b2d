# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The tables of `scale.py`."""

from shared.formats import duration, markdown, si


def measured(result: dict) -> str:
    return (
        f"By `benchmarks/scale.py` on {result['machine']} (load before: {result['load']:g}), {result['threads']} thread a process, "
        f"torch {result['torch']}, seed {result['seed']}."
    )


def steps_table(result: dict) -> str:
    """Write the measured time of a training step against tokens and parameters."""
    settings, steps = result["settings"], result["measured"]["steps"]
    text = (
        f"**Measured**: one training step in float32 (loss, gradient, clipping, AdamW, averages) of {settings['batch_size']} images: "
        f"medians and quartiles of {settings['repeats']} steps, the cases in turn. {measured(result)}"
    )
    lines = []
    for row in steps["tokens"] + steps["parameters"]:
        low, high = (si(t, "s") for t in row["quartiles"])
        cells = [row["size"], f"{row['parameters'] / 1e6:.1f} M", row["tokens"], si(row["step_flops"], "FLOP")]
        cells += [f"{si(row['seconds'], 's')} ({low} to {high})", si(row["flops_per_second"], "FLOP/s")]
        lines.append(cells)
    header = ["network", "parameters", "tokens", "FLOPs of a step", "time", "rate"]
    return f"{text}\n\n{markdown(header, lines)}"


def costs_table(result: dict) -> str:
    """Write what else was measured: the cache, the draws, the checkpoint, two processes."""
    cache, order, checkpoint, two = (result["measured"][k] for k in ("cache", "order", "checkpoint", "two_processes"))
    images, times = f"{cache['images']:,} images", "{} repeats".format
    rows = [
        ("building a latent cache (32 px PNG, `cifar10-32`)", f"{cache['built_per_second']:,.0f} images/s", f"{images}, once"),
        ("its files", f"{cache['stored_bytes_per_image']:,.0f} bytes an image", images),
        ("opening it", f"{si(cache['open_seconds_per_shard'], 's')} a file", f"{cache['shards']} files, {times(result['settings']['repeats'])}"),
    ]  # fmt: skip
    if cache["maps_per_shard"] is not None:
        rows.append(("memory maps it takes", f"{cache['maps_per_shard']:g} a file", f"{cache['shards']} files"))
    for row in cache["reading"]:
        rate = f"{row['images_per_second']:,.0f} images/s, {si(row['bytes_per_second'], 'B/s')}"
        rows.append((f"reading latents of {row['latents']}, {row['order']}, batches of 64, one process, from the page cache", rate, f"{row['images']:,} images, {times(row['repeats'])}"))  # fmt: skip
    rows += [
        ("the order of an epoch", f"{si(order['seconds'], 's')}, {order['bytes_per_image']:g} bytes an image", f"{order['set_size']:,} images, {times(order['repeats'])}"),
        (f"noise of {'×'.join(map(str, result['assumed']['sample']))}, a generator an image", f"{order['noise_per_second']:,.0f} images/s", times(order["noise_repeats"])),
        ("a checkpoint, DDP", f"{checkpoint['bytes_per_parameter']:.1f} bytes a parameter, {si(checkpoint['bytes_per_second'], 'B/s')}", f"{checkpoint['parameters'] / 1e6:.1f} M parameters, {times(checkpoint['repeats'])}"),
    ]  # fmt: skip
    for row in two["all_reduce"]:
        rate = f" ({si(row['bytes'] / row['seconds'], 'B/s')})" if row["bytes"] > 1000 else ""
        rows.append((f"all-reduce of {si(row['bytes'], 'B')}, gloo, two processes", f"{si(row['seconds'], 's')}{rate}", times(row["repeats"])))  # fmt: skip
    for row in two["steps"]:
        both = f"{si(row['DDP'], 's')} against {si(row['alone'], 's')}"
        rows.append((f"a step of {row['parameters'] / 1e6:.1f} M parameters under DDP, two processes, against each alone", both, times(row["repeats"])))  # fmt: skip
    text = f"**Measured**; medians where there are repeats. {measured(result)}"
    return f"{text}\n\n{markdown(['what', '', 'of'], rows)}"


def checked_table(result: dict) -> str:
    """Compare the formulas with what could be measured of them."""
    found = result["measured"]
    steps = found["steps"]["tokens"] + found["steps"]["parameters"]
    flops = [row["calculated_flops"] / row["forward_flops"] for row in steps]
    rows = [("FLOPs of a forward pass", f"`count_flops`, {len(flops)} networks", flops)]
    for bf16 in (False, True):
        for checkpointing in (False, True):
            cases = [r for r in found["activations"] if (r["bf16"], r["checkpointing"]) == (bf16, checkpointing)]
            name = f"activations, {'autocast to bf16' if bf16 else 'float32'}{', checkpointing' * checkpointing}"
            of = f"saved tensors, {len(cases)} networks{', without the layer that is made again' * checkpointing}"
            rows.append((name, of, [r["calculated"] / r["measured"] for r in cases]))
    one, two = found["checkpoint"]["state_bytes_per_parameter"], found["two_processes"]["fsdp2_state_bytes_per_parameter"]  # fmt: skip
    expected = {"weights": 4, "gradients": 4, "moments": 8, "averages": 4}
    for name, state, processes in (("one process", one, 1), ("FSDP2 on two, a process", two, 2)):
        rows.append((f"weights, gradients, moments, averages: {name}", "their tensors", [expected[k] / processes / v for k, v in state.items()]))  # fmt: skip
    cache = found["cache"]
    stored = [cache["calculated_bytes_per_image"] / cache["stored_bytes_per_image"]]
    rows.append(("bytes of a latent cache", "its files", stored))
    text = f"**Calculated over measured**: the lowest and the highest ratio. {measured(result)}"
    lines = [(name, of, f"{min(ratios):.3f} to {max(ratios):.3f}") for name, of, ratios in rows]
    return f"{text}\n\n{markdown(['formula', 'measured as', 'ratio'], lines)}"


def networks_table(result: dict) -> str:
    """Write the calculated step of large networks."""
    a, calculated = result["assumed"], result["calculated"]
    size = "×".join(map(str, a["sample"]))
    text = (
        f"**Calculated**: {a['images_per_gpu']} latents of {size} a GPU ({a['sample'][1] ** 2 // 4:,} tokens), "
        f"bf16, at an assumed {a['utilisation']:.0%} of {si(a['flops_per_second'], 'FLOP/s')} (H100, dense). In brackets: with "
        "`--gradient_checkpointing`."
    )
    lines = []
    for row in calculated["networks"]:
        cells = [row["network"], row["size"], f"{row['parameters'] / 1e9:.2f} B", si(row["forward_flops"], "FLOP")]
        cells.append(f"{si(row['step_seconds'], 's')} ({si(row['step_seconds_checkpointed'], 's')})")
        cells.append(f"{row['activations'] / 1e9:.1f} GB ({row['activations_checkpointed'] / 1e9:.1f} GB)")
        lines.append([*cells, si(row["checkpoint"], "B")])
    header = ["network", "`--transformer_size`", "parameters", "FLOPs of a forward pass", "time of a step", "activations", "checkpoint"]  # fmt: skip
    return f"{text}\n\n{markdown(header, lines)}"


def engines_table(result: dict) -> str:
    """Write the calculated memory and communication of each engine."""
    a, calculated = result["assumed"], result["calculated"]
    limit = a["memory_bytes"]
    cells = {}
    for memory, sent in zip(calculated["memory"], calculated["communication"]):
        cells.setdefault((memory["network"], memory["engine"]), []).append((memory, sent))
    gpus = [memory["gpus"] for memory, _ in next(iter(cells.values()))]
    step = {row["network"]: row["step_seconds"] for row in calculated["networks"]}
    text = (
        f"**Calculated**: memory of a GPU in GB without activations (bold: over {limit / 1e9:.0f}), with averages, and in brackets "
        "with `--no-use_ema`; what a GPU sends in a step, and how long that takes over the step of the table above, if nothing "
        f"is hidden behind it, at nominal rates: {si(a['link_within_machine'], 'B/s')} within a machine of {a['gpus_per_machine']} "
        f"(NVLink), {si(a['link_between_machines'], 'B/s')} a GPU between machines (400 Gb/s)."
    )
    header = ["network", "engine", "at the start", *(f"{n:,} GPUs" for n in gpus), "sent"]
    header += [f"time, {gpus[0]:,}", f"time, {gpus[-1]:,}"]
    lines = []

    def gb(value):
        number = f"{value / 1e9:.1f}"
        return f"**{number}**" if value > limit else number

    for (name, engine), pairs in cells.items():
        row = [name, engine, gb(pairs[0][0]["at_start"])]
        row += [f"{gb(memory['all'])} ({gb(memory['without_averages'])})" for memory, _ in pairs]
        row.append(si(pairs[-1][1]["bytes"], "B"))
        row += [
            f"{si(sent['seconds'], 's')} ({sent['seconds'] / step[name]:.0%})" for _, sent in (pairs[0], pairs[-1])
        ]
        lines.append(row)
    return f"{text}\n\n{markdown(header, lines)}"


def sets_table(result: dict) -> str:
    """Write the calculated size of latent caches, and how fast they are read."""
    a, calculated = result["assumed"], result["calculated"]
    few, many = (f"{a[k]:,}" for k in ("images", "many_images"))
    text = (
        f"**Calculated**: both orientations in float16, with label and row; read at {calculated['images_per_second']:,.0f} images/s a "
        "GPU, what the smallest network above takes at most (the others take less). The coupling is "
        "`--prior_coupling semi_discrete`, on every GPU, at factor 4."
    )
    header = [
        "latents",
        "an image",
        f"{few} images",
        f"{many} images",
        "read, a GPU",
        "8 GPUs",
        "64 GPUs",
        "1,024 GPUs",
    ]
    lines = []
    for row in calculated["cache"]:
        cells = [row["latents"], si(row["bytes"], "B"), si(row["bytes"] * a["images"], "B")]
        cells += [si(row["bytes"] * a["many_images"], "B")]
        cells += [si(row["read_per_gpu"] * n, "B/s") for n in (1, 8, 64, 1024)]
        lines.append([*cells, si(row["semi_discrete"] * a["images"], "B")])
    return f"{text}\n\n{markdown([*header, f'coupling, {few} images'], lines)}"


def limits_table(result: dict) -> str:
    """Write what breaks first, why, and which setting answers it."""
    a, calculated, measured = result["assumed"], result["calculated"], result["measured"]
    network = {row["network"]: row for row in calculated["networks"]}
    small, middle, large = network.values()
    engines = {(r["network"], r["engine"], r["gpus"]): r for r in calculated["memory"]}
    sent = {(r["network"], r["engine"], r["gpus"]): r["seconds"] for r in calculated["communication"]}
    slow, fast = a["encoded_per_second"]
    noise = a["images_per_gpu"] / measured["order"]["noise_per_second"]
    gradients = large["unscattered_gradients"]
    every = a["checkpointing_steps"]
    held = calculated["held_bytes_per_image"] * a["many_images"]
    order = measured["order"]["seconds"] / measured["order"]["set_size"] * a["many_images"]
    files = -(-a["many_images"] // a["shard_size"])
    coupling = max(row["semi_discrete"] for row in calculated["cache"] if row["latents"].startswith("256"))
    rows = [
        ("8", "the cache is built by one process, the others wait", f"{a['images']:,} images at {fast:,} to {slow:,} a second (assumed): {duration(a['images'] / fast)} to {duration(a['images'] / slow)}; {a['many_images']:,}: {duration(a['many_images'] / fast)} to {duration(a['many_images'] / slow)}", "a run on one GPU first, with the same `--cache_dir`; or `--streaming`"),
        ("8", "activations", f"{middle['activations'] / 1e9:.0f} GB beside {engines['1 B', 'DDP', 8]['all'] / 1e9:.0f} GB, 1 B under DDP", "`--gradient_checkpointing`, or a smaller `--train_batch_size` with `--gradient_accumulation_steps`"),
        ("8", "10 B under DDP", f"{engines['10 B', 'DDP', 8]['all'] / 1e9:.0f} GB on every GPU, however many", "`fsdp2.yaml`"),
        ("8", "10 B under ZeRO: the averages are whole on each GPU, and there before DeepSpeed takes parts", f"{engines['10 B', 'ZeRO-3', 8]['at_start'] / 1e9:.0f} GB at the start", "`fsdp2.yaml`, where they are in parts, or `--no-use_ema`"),
        ("8", "memory of the machine at the start: every process makes the whole network on its CPU", f"10 B: {large['host_at_start'] / 1e9:.0f} GB for {a['gpus_per_machine']} processes", "a smaller network; no setting"),
        ("8", "noise is drawn on the CPU, an image at a time", f"{si(noise, 's')} of a step of {si(small['step_seconds'], 's')} at 0.1 B", "no setting; larger networks hide it"),
        ("64", "gradients between machines", f"1 B under DDP: {si(sent['1 B', 'DDP', 64], 's')} beside a step of {si(middle['step_seconds'], 's')}, of which the backward pass hides a part", "more images a step and GPU: `--gradient_checkpointing` for a larger `--train_batch_size`, `--gradient_accumulation_steps`"),
        ("64", "accumulation under FSDP2 keeps whole bf16 gradients on each GPU, and gathers the weights for every part", f"10 B: {gradients / 1e9:.0f} GB more", "`--gradient_checkpointing` and a larger `--train_batch_size` instead"),
        ("64", "one process writes a checkpoint under DDP, the others wait", f"1 B: {duration(middle['write_seconds'])} at {si(a['disk_write'], 'B/s')} (assumed) every {every} steps, {duration(every * middle['step_seconds'])}", "`--checkpointing_steps`; the sharded ones of `fsdp2_multi_node.yaml`; `--checkpoints_total_limit`"),
        ("64", "one process validates under DDP and ZeRO-2, the others wait", f"the time of {calculated['validation_steps']:.0f} steps every {a['validation_steps']:,}", "`--validation_steps`, `--num_validation_images`"),
        ("64", "minibatch optimal transport sees the batch of one process", "the same global batch over more GPUs is a weaker coupling", "`--prior_coupling semi_discrete`; or `--train prior` on few GPUs, it is small"),
        ("64", "the semi-discrete coupling holds all coarse latents on each GPU", f"{a['images']:,} images of 256 px with 16 channels: {coupling * a['images'] / 1e9:.0f} GB", "`--prior_coupling minibatch_ot` or `independent`"),
        ("1,024", "something fails", f"every {duration(calculated['failure_hours']['1024'] * 3600)}, if a GPU does every {a['failure_hours']:,} hours (419 failures in 54 days of 16,384 GPUs: arXiv 2407.21783)", f"[start again by itself](#start-again); a checkpoint every {duration(middle['best_interval_seconds']['1024'])} loses least for 1 B under DDP"),
        ("1,024", "a machine is lost for good", "under FSDP2, ZeRO and `--streaming` a checkpoint goes on on as many processes only", "a machine in reserve; under `ddp_multi_node.yaml` fewer processes, with the same global batch"),
        ("1,024", "a process hangs", "the others wait a day: the time limit of collectives is that long because of the cache", "no setting; let the batch system watch `--logging_steps`"),
        ("1,024", "the global batch", f"{a['images_per_gpu'] * 1024:,} images; one for each GPU is the least", "fewer GPUs: no study here went beyond batches of hundreds"),
        ("1,024", "weights under FSDP2 are in parts over all GPUs, not within a machine", f"10 B: {si(sent['10 B', 'FSDP2', 1024], 's')} beside a step of {si(large['step_seconds'], 's')}", "more images a step and GPU, as above"),
        ("any", "a process holds labels, rows and the order of an epoch", f"{held / 1e9:.0f} GB for {a['many_images']:,} images, {a['gpus_per_machine']} times that a machine; the order anew in {duration(order)} or more an epoch", "`--streaming`"),
        ("any", "every file of a cache is a memory map of the process", f"{files:,} files for {a['many_images']:,} images, {a['maps']:,} maps allowed by default", "`sysctl vm.max_map_count`, or `--streaming`"),
        ("any", "latents are read in random order, a page at a time", "what does not fit the page cache is read from the disk, on network disks slowly", "`--cache_dir` on a local disk that all processes of the machine share, `--dataloader_num_workers`; or `--streaming`"),
    ]  # fmt: skip
    text = "**Calculated**, from the tables above and what is measured; nothing of it was run."
    return f"{text}\n\n{markdown(['GPUs', 'what breaks', 'why', 'what answers it'], rows)}"


VIEWS = {
    "costs": costs_table,
    "checked": checked_table,
    "networks": networks_table,
    "engines": engines_table,
    "sets": sets_table,
    "limits": limits_table,
}


def table(result: dict, view: str | None = None) -> str:
    """Write the times of a step, or a table of `VIEWS`."""
    return VIEWS[view](result) if view else steps_table(result)
