# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""
Loading a file runs no code: pickles, modules next to the weights, paths out of a folder, unexpected classes.

Every trap creates the folder `sprung` when something runs it, and no test may leave that folder behind.
"""

import json
import os
import pickle
import shutil
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from scripts import load_script, make_folder, workplace
from tiny import make_pipeline, make_text_pipeline
from torch.distributed import checkpoint

from diffusers import AutoModel, DiffusionPipeline, ModelMixin  # noqa: F401 (its own module must hold the name to load a class)
from diffusers_lowfreq import LowFreqPipeline, LowFreqTextToImagePipeline, LowFreqTransformer2DModel
from diffusers_lowfreq.autoencoding import load_autoencoder
from diffusers_lowfreq.text_encoding import load_text_encoder
from diffusers_lowfreq.training import CaptionCache, LatentCache, load_images
from diffusers_lowfreq.training.checkpoints import load_ema_state
from diffusers_lowfreq.training.engines import weights_only


WEIGHTS = {
    "transformer": "diffusion_pytorch_model",
    "prior": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
WEIGHTS |= {"text_encoder": "model"}
CODE = "import os\nos.mkdir('sprung')\nclass Evil: pass\n"


pytestmark = pytest.mark.usefixtures(workplace.__name__, "pipes")


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


def plant(path, form: str = "plain"):
    """Write a pickle that springs when it is loaded: a plain one, or one written by `torch.save`."""
    if form == "plain":
        Path(path).write_bytes(pickle.dumps(Trap()))
    else:
        torch.save(Trap(), path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    make_pipeline().save_pretrained(folder / "labels")
    make_text_pipeline(vae="kl").save_pretrained(folder / "text")
    return folder


@pytest.fixture
def pipes(workplace, saved):
    """Copies of two saved pipelines, `labels` and `text`, to tamper with. No trap may spring."""
    for name in ("labels", "text"):
        shutil.copytree(saved / name, name)
    yield
    assert not os.path.exists("sprung")


@pytest.mark.parametrize("form", ["plain", "torch"])
def test_the_traps_spring(form):
    plant("trap.bin", form)
    loaders = {
        "plain": lambda: pickle.loads(Path("trap.bin").read_bytes()),
        "torch": lambda: torch.load("trap.bin", weights_only=False),
    }
    loaders[form]()
    os.rmdir("sprung")
    exec(CODE)  # noqa: S102
    os.rmdir("sprung")


# ------------------------------------------------------------------------------------------------- pickles for weights

LOADERS = {
    "a transformer": ("transformer", lambda: LowFreqTransformer2DModel.from_pretrained("text/transformer")),
    "a transformer by its class of diffusers": (
        "transformer",
        lambda: AutoModel.from_pretrained("text", subfolder="transformer"),
    ),
    "a prior model": ("prior", lambda: LowFreqTransformer2DModel.from_pretrained("text", subfolder="prior")),
    "an autoencoder": ("vae", lambda: load_autoencoder("text", "vae")),
    "a text encoder": ("text_encoder", lambda: load_text_encoder("text", "text_encoder", "tokenizer")),
    **{f"a pipeline, {name}": (name, lambda: LowFreqTextToImagePipeline.from_pretrained("text")) for name in WEIGHTS},
    **{
        f"any pipeline, {name}": (name, lambda: DiffusionPipeline.from_pretrained("text"))
        for name in ("transformer", "prior")
    },
}


@pytest.mark.parametrize("form", ["plain", "torch"])
@pytest.mark.parametrize("loader", LOADERS)
def test_pickled_weights_are_not_loaded(loader, form):
    component, load = LOADERS[loader]
    load()
    folder = Path("text", component)
    (folder / f"{WEIGHTS[component]}.safetensors").unlink()
    for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin", "model.bin", "model.pt", "flax_model.msgpack"):
        plant(folder / name, form)
    with pytest.raises((OSError, ValueError), match="safetensors"):
        load()


@pytest.mark.parametrize("loader", LOADERS)
def test_a_pickle_next_to_the_weights_is_ignored(loader):
    component, load = LOADERS[loader]
    for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin", "optimizer.bin", "random_states_0.pkl"):
        plant(Path("text", component, name))
        plant(Path("text", name))
    load()


@pytest.mark.parametrize("loader", LOADERS)
def test_a_pickle_under_the_name_of_safetensors_is_not_loaded(loader):
    component, load = LOADERS[loader]
    plant(Path("text", component, f"{WEIGHTS[component]}.safetensors"))
    with pytest.raises((OSError, ValueError)):
        load()


def test_pickles_cannot_be_asked_for():
    for load in (LowFreqPipeline.from_pretrained, LowFreqTransformer2DModel.from_pretrained):
        with pytest.raises(ValueError, match="`use_safetensors` must be True: pickles are not loaded, got False"):
            load("labels", use_safetensors=False)
    pipe = LowFreqPipeline.from_pretrained("labels")
    os.mkdir("lora")
    plant("lora/pytorch_lora_weights.bin")
    for asked, named in (
        ({"use_safetensors": False}, "`use_safetensors` must be True"),
        ({"weight_name": "pytorch_lora_weights.bin"}, "`weight_name` must be that of a safetensors file"),
        ({}, "pytorch_lora_weights.safetensors"),
    ):
        with pytest.raises((OSError, ValueError), match=named):
            pipe.load_lora_weights("lora", **asked)


def test_graders_are_not_unpickled(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import evaluate
    from graders import Grader

    Grader(width=4).save_pretrained("grader", safe_serialization=False)
    plant("grader/diffusion_pytorch_model.bin")
    for form in ("plain", "torch"):
        plant(f"{form}.pt", form)
    for path in ("grader", "plain.pt", "torch.pt"):
        with pytest.raises((OSError, RuntimeError)):
            evaluate.Extractor(path)


# ------------------------------------------------------------------------------------------------ what an index may say


def rewrite(file, **changes):
    file = Path(file)
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    "loader",
    ["a transformer", "an autoencoder", "a text encoder", *(name for name in LOADERS if "a pipeline" in name)],
)
@pytest.mark.parametrize(
    "where",
    ["../outside.safetensors", "{cwd}/outside.safetensors", "a/../../outside.safetensors", "a/inside.safetensors"],
)
def test_a_sharded_model_does_not_leave_its_folder(loader, where):
    component, load = LOADERS[loader]
    weights = Path("text", component, f"{WEIGHTS[component]}.safetensors")
    state = load_file(weights)
    os.mkdir(weights.parent / "a")
    for outside in ("text/outside.safetensors", "outside.safetensors"):
        save_file(state, outside, metadata={"format": "pt"})
    weights.unlink()
    names = dict.fromkeys(state, where.format(cwd=os.getcwd()))
    index = {"metadata": {"total_size": 1}, "weight_map": names}
    Path(f"{weights}.index.json").write_text(json.dumps(index))
    with pytest.raises((OSError, ValueError), match="side.safetensors"):
        load()


def test_nor_does_a_variant_of_a_text_encoder():
    weights = Path("text", "text_encoder", f"{WEIGHTS['text_encoder']}.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(load_file(weights), "../outside.safetensors")}
    Path(f"{weights}.index.fp16.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="must name files beside it, got '../outside.safetensors'"):
        LowFreqTextToImagePipeline.from_pretrained("text", variant="fp16")


@pytest.mark.parametrize(
    "component, entry",
    [
        ("transformer", ["os", "system"]),
        ("transformer", ["builtins", "eval"]),
        ("transformer", ["builtins", "object"]),
        ("transformer", ["torch.nn", "Identity"]),
        ("transformer", ["diffusers", "UNet2DModel"]),
        ("transformer", ["diffusers", "AutoencoderKL"]),
        ("transformer", ["diffusers", "no_such_name"]),
        ("transformer", ["evil", "Evil"]),
        ("transformer", ["../outside", "Evil"]),
        ("transformer", ["", "LowFreqTransformer2DModel"]),
        ("transformer", ["diffusers_lowfreq"]),
        ("transformer", ["diffusers_lowfreq", "LowFreqTransformer2DModel", "more"]),
        ("transformer", ["diffusers_lowfreq", "LowFreqPipeline"]),
        ("transformer", ["diffusers_lowfreq", None]),
        ("prior", ["diffusers", "UNet2DModel"]),
        ("prior", ["evil", "Evil"]),
        ("vae", ["diffusers", "UNet2DModel"]),
        ("vae", ["diffusers_lowfreq", "LowFreqTransformer2DModel"]),
        ("vae", ["transformers", "CLIPTextModel"]),
        ("scheduler", ["diffusers", "DDIMScheduler"]),
        ("scheduler", ["subprocess", "Popen"]),
        ("prior_scheduler", ["diffusers", "AutoencoderKL"]),
        ("guider", ["os", "system"]),
        ("guider", ["diffusers", "AutoencoderKL"]),
        ("text_encoder", ["transformers", "CLIPTokenizer"]),
        ("text_encoder", ["transformers", "pipeline"]),
        ("text_encoder", ["evil", "Evil"]),
        ("tokenizer", ["pickle", "Unpickler"]),
        ("tokenizer", ["evil", "Evil"]),
    ],
)
@pytest.mark.parametrize("loader", [LowFreqTextToImagePipeline, DiffusionPipeline], ids=lambda cls: cls.__name__)
def test_a_component_of_an_unexpected_class_is_refused(monkeypatch, loader, component, entry):
    """Its code is imported neither from the path of the program nor from the folder of the component."""
    monkeypatch.syspath_prepend(os.getcwd())
    os.makedirs(f"text/{component}", exist_ok=True)
    for file in ("evil.py", "outside.py", f"text/{component}/evil.py", "text/evil.py", "text/outside.py"):
        Path(file).write_text(CODE)
    rewrite("text/model_index.json", **{component: entry})
    with pytest.raises(ValueError, match=f"`{component}` in the model_index.json must be an? "):
        loader.from_pretrained("text")
    assert "evil" not in sys.modules


def test_a_class_that_the_program_defines_is_loaded(monkeypatch):
    class Own(LowFreqTransformer2DModel):
        pass

    monkeypatch.setattr(sys.modules[__name__], "Own", Own, raising=False)
    Own.__qualname__ = "Own"
    rewrite("labels/model_index.json", transformer=[__name__, "Own"])
    rewrite("labels/transformer/config.json", _class_name="Own")
    assert type(LowFreqPipeline.from_pretrained("labels").transformer) is Own


# ----------------------------------------------------------------------------------------------------- code in a folder


@pytest.mark.parametrize("loader", [LowFreqPipeline, DiffusionPipeline], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("class_name", [["evil", "Evil"], ["pipeline", "Evil"]])
def test_a_pipeline_of_its_own_code_is_refused(loader, class_name):
    for name in ("evil.py", "pipeline.py", "Evil.py"):
        Path("labels", name).write_text(CODE)
    rewrite("labels/model_index.json", _class_name=class_name)
    with pytest.raises(ValueError, match="trust_remote_code"):
        loader.from_pretrained("labels")


@pytest.mark.parametrize(
    "folder, file, changes, load",
    [
        ("vae", "config.json", {"auto_map": {"AutoModel": "evil.Evil"}}, lambda: load_autoencoder("text/vae")),
        ("vae", "config.json", {"_class_name": "Evil"}, lambda: load_autoencoder("text/vae")),
        (
            "text_encoder",
            "config.json",
            {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}},
            lambda: load_text_encoder("text", "text_encoder", "tokenizer"),
        ),
        (
            "tokenizer",
            "tokenizer_config.json",
            {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}},
            lambda: load_text_encoder("text", "text_encoder", "tokenizer"),
        ),
    ],
    ids=["auto_map", "class", "text encoder", "tokenizer"],
)
def test_a_component_of_its_own_code_is_refused(monkeypatch, folder, file, changes, load):
    """It is refused at once, without a question at the terminal."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked at the terminal"))
    Path("text", folder, "evil.py").write_text(CODE)
    rewrite(Path("text", folder, file), **changes)
    with pytest.raises(ValueError, match="`pretrained_(vae|text_encoder)(_model)?_name_or_path` must be"):
        load()


@pytest.mark.parametrize("name", ["set", "set/set.py"])
def test_the_script_of_a_data_set_is_not_run(name):
    make_folder(Path("set"), 3)
    for file in ("set/set.py", "set/dataset_loading_script.py"):
        Path(file).write_text(CODE)
    try:
        images = load_images(name, resolution=16, label_column=None)
    except ValueError as error:
        assert "`dataset_name`" in str(error)
    else:  # the pictures beside the script
        assert name == "set" and len(images) == 3


@pytest.mark.parametrize("name", ["../outside.safetensors", "{cwd}/outside.safetensors"])
def test_a_cache_does_not_leave_its_folder(name):
    save_file(
        {"latents": torch.zeros(1, 1, 3, 4, 4), "labels": torch.zeros(1), "positions": torch.zeros(1)},
        "outside.safetensors",
    )
    os.mkdir("cache")
    index = {"shards": [name.format(cwd=os.getcwd())], "mean": [0.0], "std": [1.0], "id2label": None, "texts": [""]}
    for file in os.listdir("cache") or ["index.json"]:
        Path("cache", file).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="lacks its shard .*outside.safetensors"):
        LatentCache("cache")
    with pytest.raises(ValueError, match="lacks its shard .*outside.safetensors"):
        CaptionCache("cache", [[""]])


# --------------------------------------------------------------------------------------------- the state of a training

script = load_script("train_lowfreq")
LINE = "--train_data_dir images --output_dir out --train flow --resolution 16 --transformer_size 1x1x8 --patch_size 4"
LINE += " --train_batch_size 2 --checkpointing_steps 1 --num_validation_images 1 --max_train_steps "


def train(steps: int, *more: str):
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    script.main(script.parse_args([*LINE.split(), str(steps), *more]))


@pytest.fixture
def run():
    make_folder(Path("images"), 4)
    train(1)
    shutil.rmtree("out/transformer")
    rewrite("out/checkpoint-1/training_args.json", max_train_steps=2)
    return Path("out/checkpoint-1")


@pytest.mark.parametrize("form", ["plain", "torch"])
@pytest.mark.parametrize("name", ["optimizer.bin", "random_states_0.pkl", "random_states_1.pkl"])
def test_a_checkpoint_that_would_run_code_is_refused(run, name, form):
    plant(run / name, form)
    with pytest.raises(
        ValueError, match="`resume_from_checkpoint` 'out/checkpoint-1' .* more than tensors and numbers"
    ):
        train(2, "--resume_from_checkpoint", "latest")


@pytest.mark.parametrize("name", ["transformer", "transformer_ema"])
def test_the_weights_of_a_checkpoint_are_safetensors(run, name):
    (run / name / "diffusion_pytorch_model.safetensors").unlink()
    plant(run / name / "diffusion_pytorch_model.bin", "torch")
    with pytest.raises(OSError, match="diffusion_pytorch_model.safetensors"):
        train(2, "--resume_from_checkpoint", "latest")


@pytest.mark.parametrize("name", ["lr_scheduler.json", "training_args.json", "custom_checkpoint_0.pkl"])
def test_the_rest_of_a_checkpoint_is_not_unpickled(run, name):
    plant(run / name)
    with pytest.raises((ValueError, RuntimeError)):
        train(2, "--resume_from_checkpoint", "latest")


def test_a_checkpoint_is_resumed_next_to_unknown_pickles(run):
    for name in ("pytorch_model.bin", "scheduler.bin", "sampler.bin", "dl_state_dict.bin"):
        plant(run / name)
    train(2, "--resume_from_checkpoint", "latest")
    assert os.path.isdir("out/checkpoint-2")


def test_the_averages_of_a_lora_are_not_unpickled():
    plant("transformer_ema.safetensors")
    with pytest.raises(Exception, match="(?i)header"):
        load_ema_state("transformer_ema.safetensors")


@pytest.mark.parametrize("name", ["org/name/checkpoint-10", "org/name", "org/name/prior-checkpoint-10"])
def test_a_checkpoint_is_not_looked_up_on_the_hub(monkeypatch, name):
    """Neither network trains: the run does not find out after the prior that the flow has no checkpoint."""
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("a connection was tried"))
    make_folder(Path("images"), 4)
    with pytest.raises(ValueError, match=f"`resume_from_checkpoint` must be .* got '{name}'"):
        train(1, "--train", "both", "--prior_size", "1x1x8", "--resume_from_checkpoint", name)
    assert not list(Path("out").glob("*checkpoint*"))


def accelerator(engine: str):
    plugin = SimpleNamespace(zero_stage=2)
    return SimpleNamespace(distributed_type=DistributedType[engine], state=SimpleNamespace(deepspeed_plugin=plugin))


def test_a_sharded_checkpoint_holds_tensors_only():
    """Torch itself would unpickle it, and DeepSpeed its own files."""
    checkpoint.save({"count": Trap()}, checkpoint_id="sharded")
    checkpoint.load({"count": 0}, checkpoint_id="sharded")
    os.rmdir("sprung")  # without the guard
    with weights_only(accelerator("FSDP")), pytest.raises(BaseException, match="(?s)mkdir"):
        checkpoint.load({"count": 0}, checkpoint_id="sharded")
    checkpoint.save({"count": 3, "a": torch.arange(3.0)}, checkpoint_id="true")
    with weights_only(accelerator("FSDP")):
        state = {"count": 0, "a": torch.zeros(3)}
        checkpoint.load(state, checkpoint_id="true")
    assert state["count"] == 3 and state["a"].tolist() == [0.0, 1.0, 2.0]


def test_deepspeed_may_only_unpickle_its_own_classes():
    scaler = pytest.importorskip("deepspeed.runtime.fp16.loss_scaler", reason="DeepSpeed is not installed")
    torch.save({"loss_scaler": scaler.LossScaler(1.0)}, "mp_rank_00_model_states.pt")
    plant("trap.pt", "torch")
    with weights_only(accelerator("DEEPSPEED")):
        assert torch.load("mp_rank_00_model_states.pt", weights_only=False)["loss_scaler"].cur_scale == 1.0
        with pytest.raises(pickle.UnpicklingError, match="mkdir"):
            torch.load("trap.pt", weights_only=False)
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
