# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Quantised loading, as diffusers offers it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import run_process
from tiny import make_pipeline


ROOT = Path(__file__).parents[2]

COMPARE = """
import torch
from diffusers import PipelineQuantizationConfig, TorchAoConfig
from torchao.quantization import Int8WeightOnlyConfig
from diffusers_lowfreq import LowFreqPipeline, LowFreqTransformer2DModel
from diffusers_lowfreq.flops import count_flops

def generate(pipe):
    pipe.set_progress_bar_config(disable=True)
    assert "Int8" in type(pipe.transformer.transformer_blocks[0].attn.to_q.weight).__name__ or pipe is plain
    generator = torch.Generator().manual_seed(0)
    return pipe(["cat", "ship"], num_inference_steps=2, guidance_scale=2.0, generator=generator, output_type="pt").images

plain = LowFreqPipeline.from_pretrained("pipe")
images = generate(plain)
int8 = TorchAoConfig(Int8WeightOnlyConfig())
flow = LowFreqTransformer2DModel.from_pretrained("pipe", subfolder="transformer", quantization_config=int8)
whole = PipelineQuantizationConfig(quant_mapping={"transformer": int8, "prior": int8})
for pipe in (
    LowFreqPipeline.from_pretrained("pipe", transformer=flow),
    LowFreqPipeline.from_pretrained("pipe", quantization_config=whole),
):
    error = (generate(pipe) - images).abs().mean() / images.std()
    assert 0 < error < 0.05, error
    assert count_flops(pipe.transformer, (4, 8, 8)) == count_flops(plain.transformer, (4, 8, 8)) > 0
"""


@pytest.mark.slow
def test_the_networks_load_in_8_bits_and_the_images_stay(tmp_path):
    pinned = re.search(r"^torchao==.+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[0]
    # Beside the environment, since diffusers and peft import it wherever it is
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(tmp_path / "site"),
        pinned,
    ]
    subprocess.run(install, check=True)
    make_pipeline().save_pretrained(tmp_path / "pipe")
    path = f"{tmp_path / 'site'}:{ROOT / 'src'}"
    run_process("-c", COMPARE, cwd=tmp_path, PYTHONPATH=path)
