# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""`benchmarks/ship.py`."""

import pytest
import ship
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file
from small_studies import call
from tiny import make_pipeline

from diffusers_lowfreq import LowFreqFlowMatchScheduler, LowFreqUpscalePipeline
from diffusers_lowfreq.model_card import save_model_card


def test_a_lora_is_shipped_in_half_precision_with_a_card_that_runs(workplace):
    pipe = make_pipeline()
    pipe.save_pretrained("checkpoints/tiny")
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    metadata = pipe.transformer.peft_config["default"].to_dict() | {"auto_mapping": pipe.scheduler.source}
    layers = get_peft_model_state_dict(pipe.transformer)
    pipe.save_lora_weights("out", transformer_lora_layers=layers, transformer_lora_adapter_metadata=metadata)
    parts = {k: getattr(pipe, k) for k in ("transformer", "scheduler", "vae")}
    facts = {"Data": {"images": 18}}
    save_model_card("out", "out", LowFreqUpscalePipeline(**parts, id2label={0: "horse"}), facts, base_model="tiny")
    (workplace / "cards").mkdir()
    (workplace / "cards/tiny-upscale.md").write_text("## What this is\n\nSmall.\n")
    call(ship, lora="out", output="checkpoints/tiny-upscale", cards_dir="cards")
    path = "checkpoints/tiny-upscale/pytorch_lora_weights.safetensors"
    shipped = load_file(path)
    assert {k: v.dtype for k, v in shipped.items()} == dict.fromkeys(shipped, torch.float16)
    for key, value in layers.items():
        assert torch.equal(shipped[f"transformer.{key}"], value.half())
    text = (workplace / "checkpoints/tiny-upscale/README.md").read_text()
    assert "Small." in text and "| images | 18 |" in text
    code = text.split("```py\n")[1].split("```")[0].replace('"horse"', '"cat"')
    found = {}
    exec(code, found)
    assert len(found["images"]) == 2
    found["pipe"].scheduler = LowFreqFlowMatchScheduler(factor=2, noise_ratio=0.4)
    with pytest.raises(ValueError, match="must be a LoRA for the source"):  # it still says what it is for
        found["pipe"].load_lora_weights("checkpoints/tiny-upscale", adapter_name="again")
