# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Every engine of accelerate for which there is a configuration comes to the weights of one process."""

import importlib.util
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from safetensors.torch import load_file
from scripts import EXAMPLES, load_script, make_captioned_folder, make_folder, run_process, workplace
from tiny import make_text_encoder, make_tokenizer

from diffusers_lowfreq.training import check_engine
from diffusers_lowfreq.training.engines import check_environment, check_sharded_checkpoint


pytestmark = pytest.mark.usefixtures(workplace.__name__)

CONFIGS = sorted(path.stem for path in EXAMPLES.glob("accelerate/*.yaml"))
ON_CPU = str(Path(__file__).parents[1] / "cpu_engine.py")
MODEL = "diffusion_pytorch_model.safetensors"
RUN = "--train_data_dir images --resolution 16 --transformer_size 2x2x8 --prior_size 2x2x8 --patch_size 4 --lr_warmup_steps 1 "
RUN += "--noise_ratio_range 0.3 0.8 --prior_coupling independent --max_train_steps 4 --prior_max_train_steps 3 "
RUN += "--checkpointing_steps 2 --num_validation_images 2"

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None or shutil.which("g++") is None,
    reason="DeepSpeed is optional, and compiles with g++",
)
ENGINES = ["ddp", "fsdp2", *(pytest.param(f"zero{stage}", marks=needs_deepspeed) for stage in (2, 3))]


def fake(engine: str, **attributes):
    """What `check_engine` asks an `Accelerator`."""
    attributes = {"mixed_precision": "no", "scaler": None} | attributes
    state = SimpleNamespace(fsdp_plugin=attributes.pop("fsdp_plugin", None))
    return SimpleNamespace(distributed_type=DistributedType[engine], state=state, **attributes)


@pytest.mark.parametrize(
    ("accelerator", "named"),
    [
        (lambda: fake("MEGATRON_LM"), "`distributed_type`"),
        (lambda: fake("NO", mixed_precision="fp16"), "`mixed_precision`"),
        (lambda: fake("FSDP", fsdp_plugin=FullyShardedDataParallelPlugin(fsdp_version=1)), "`fsdp_version`"),
        (
            lambda: fake(
                "FSDP", fsdp_plugin=FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="FULL_STATE_DICT")
            ),
            "`fsdp_state_dict_type`.* got FULL_STATE_DICT",
        ),
    ],
    ids=["Megatron", "float16", "FSDP1", "gathered"],
)
def test_what_the_training_cannot_work_under_is_refused_by_name(accelerator, named):
    with pytest.raises(ValueError, match=named):
        check_engine(accelerator())


@pytest.mark.parametrize("engine", ["FSDP", "DEEPSPEED"])
def test_an_engine_that_accelerate_leaves_out_is_refused(monkeypatch, engine):
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "True")  # accelerate takes either
    with pytest.raises(ValueError, match=f"`distributed_type` .* is {engine}, which accelerate leaves out"):
        check_engine(fake("NO"))


@pytest.mark.parametrize("config", CONFIGS)
def test_every_configuration_is_what_its_name_says_and_is_accepted(monkeypatch, config, caplog):
    path = str(EXAMPLES / "accelerate" / f"{config}.yaml")
    machines = 4 if config.endswith("multi_node") else 1
    read = load_config_from_file(path)
    assert (read.num_machines, read.num_processes) == (machines, 8 * machines)
    args = launch_command_parser().parse_args(["--config_file", path, "script.py"])
    args, _, _ = _validate_launch_command(args)
    if config.startswith("zero"):
        args.deepspeed_fields_from_accelerate_config = ",".join(read.deepspeed_config)
        environment = prepare_deepspeed_cmd_env(args)[1]
    else:
        environment = prepare_multi_gpu_env(args)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    accelerator = fake("MULTI_GPU")
    if config.startswith("fsdp2"):
        accelerator = fake("FSDP", fsdp_plugin=FullyShardedDataParallelPlugin())
    elif config.startswith("zero"):
        accelerator = fake("DEEPSPEED")
        if importlib.util.find_spec("deepspeed") is not None:
            assert DeepSpeedPlugin().zero_stage == int(config[4])
    check_engine(accelerator)
    check_environment(SimpleNamespace(mixed_precision=None, gradient_accumulation_steps=3, max_grad_norm=0.7))
    assert "is not used" not in caplog.text


# ---------------------------------------------------------------------------------------------------- two processes = one


def launch(config: str, cwd: Path, *command, wrapper=(), **options) -> str:
    """Run the training script on two CPU processes under a configuration."""
    is_plain = config.startswith("ddp")
    options = {"config_file": EXAMPLES / "accelerate" / f"{config}.yaml", "num_processes": 2} | options
    options = {"mixed_precision": "no", "main_process_port": 0} | options
    launcher = ["-m", "accelerate.commands.launch", *(f"--{k}={v}" for k, v in options.items())]
    environment = {"DS_ACCELERATOR": "cpu"} if config.startswith("zero") else {"ACCELERATE_USE_CPU": "1"}
    script = [*([] if is_plain else [ON_CPU]), *wrapper, EXAMPLES / "train_lowfreq.py"]
    return run_process(*launcher, *script, *command, *RUN.split(), cwd=cwd, **environment)


def train(*command):
    script = load_script("train_lowfreq")
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    script.main(script.parse_args([*command, *RUN.split()]))


def assert_same_models(folder: str, expected: str, atol: float = 2e-6):
    for name in ("prior", "transformer"):
        path = os.path.join(name, MODEL)
        actual = load_file(os.path.join(folder, path))
        torch.testing.assert_close(actual, load_file(os.path.join(expected, path)), rtol=1e-3, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("config", ENGINES)
def test_two_processes_are_one_and_a_resumed_run_is_the_same_run(workplace, config):
    make_folder(workplace / "images")
    launch(config, workplace, "--train_batch_size=4", "--prior_train_batch_size=4", "--output_dir=two")
    batches = "--train_batch_size=8", "--prior_train_batch_size=8"
    train("--output_dir=one", *batches)
    assert_same_models("two", "one")
    for name in ("checkpoint-4", "prior-checkpoint-3"):
        schedules = (Path(folder, name, "lr_scheduler.json").read_text() for folder in ("two", "one"))
        assert len(set(schedules)) == 1
    pictures = sorted(os.listdir("two/samples"))
    assert pictures and pictures == sorted(os.listdir("one/samples"))

    # Both networks again from their second step
    for name in ("checkpoint-4", "prior-checkpoint-3"):
        shutil.rmtree(f"two/{name}")
    os.rename("two", "undisturbed")
    shutil.copytree("undisturbed", "two", ignore=shutil.ignore_patterns("transformer*", "prior", "training.json"))
    for name, network in (("checkpoint-2", "transformer"), ("prior-checkpoint-2", "prior")):
        for folder in (network, f"{network}_ema"):
            if os.path.isdir(f"undisturbed/{name}/{folder}"):
                shutil.copytree(f"undisturbed/{name}/{folder}", f"two/{name}/{folder}", dirs_exist_ok=True)
    output = launch(
        config,
        workplace,
        *("--train_batch_size=4", "--prior_train_batch_size=4", "--output_dir=two", "--resume_from_checkpoint=latest"),
    )
    assert "cannot" not in output
    assert_same_models("two", "undisturbed", atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("config", ENGINES)
def test_two_machines_of_one_process_are_one(workplace, config):
    """Two launchers, as on two machines, that meet on the loopback interface."""
    make_folder(workplace / "images")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"DS_ACCELERATOR": "cpu"} if config.startswith("zero") else {"ACCELERATE_USE_CPU": "1"}
    environment |= {"HF_HOME": str(workplace / "hf"), "OMP_NUM_THREADS": "1"}
    machines = []
    for rank in (0, 1):
        command = f"-m accelerate.commands.launch --config_file {EXAMPLES}/accelerate/{config}_multi_node.yaml "
        command += f"--num_machines 2 --num_processes 2 --machine_rank {rank} --main_process_ip 127.0.0.1 "
        command += f"--main_process_port {port} --mixed_precision no {ON_CPU if config != 'ddp' else ''} "
        command += (
            f"{EXAMPLES}/train_lowfreq.py --train_batch_size 4 --prior_train_batch_size 4 --output_dir two {RUN}"
        )
        with open(f"machine-{rank}.log", "w") as log:
            machines.append(
                subprocess.Popen(
                    [sys.executable, *command.split()], env={**os.environ, **environment}, stdout=log, stderr=log
                )
            )
    codes = [machine.wait(timeout=300) for machine in machines]
    assert codes == [0, 0], Path("machine-0.log").read_text() + Path("machine-1.log").read_text()
    train("--output_dir=one", "--train_batch_size=8", "--prior_train_batch_size=8")
    assert_same_models("two", "one")


# Run a script and write down the times that its networks are told
PROBED = """
import json, os, runpy, sys
from diffusers_lowfreq.models.transformer_lowfreq import TimeEmbedding
forward = TimeEmbedding.forward

def probed(self, time, *args):
    with open(f"times-{os.environ['RANK']}.txt", "a") as file:
        file.write(json.dumps([str(time.dtype), time.tolist()]) + chr(10))
    return forward(self, time, *args)

TimeEmbedding.forward = probed
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("config", ENGINES)
def test_the_precision_of_each_configuration_leaves_the_times_and_the_saved_weights_whole(workplace, config):
    make_folder(workplace / "images")
    Path("probed.py").write_text(PROBED)
    precision = load_config_from_file(str(EXAMPLES / "accelerate" / f"{config}.yaml")).mixed_precision
    assert precision == "bf16"
    batches = "--train_batch_size=4", "--prior_train_batch_size=4"
    launch(config, workplace, *batches, "--output_dir=two", wrapper=["probed.py"], mixed_precision=precision)
    for rank in (0, 1):
        for line in Path(f"times-{rank}.txt").read_text().splitlines():
            dtype, times = json.loads(line)
            assert dtype == "torch.float32"
            if len(times) == 4 and len(set(times)) == 4:  # of a training step, not of a validation
                assert any(time != torch.tensor(time).bfloat16().item() for time in times)
    train("--output_dir=one", "--train_batch_size=8", "--prior_train_batch_size=8")
    for name in ("prior", "transformer"):
        actual, expected = (load_file(os.path.join(folder, name, MODEL)) for folder in ("two", "one"))
        assert {value.dtype for value in actual.values()} == {torch.float32}
        distance = sum((actual[k] - expected[k]).square().sum() for k in expected).sqrt()
        assert distance < 0.05 * sum(value.square().sum() for value in expected.values()).sqrt()


@pytest.mark.slow
@pytest.mark.parametrize("config", ENGINES[2:])
def test_captions_are_encoded_whole_under_deepspeed(workplace, config):
    make_captioned_folder(workplace / "images")
    tokenizer = make_tokenizer()
    for part in (tokenizer, make_text_encoder("clip", tokenizer)):
        part.save_pretrained("text")
    text = "--caption_column=text", "--pretrained_text_encoder_name_or_path=text", "--output_dir"
    launch(config, workplace, "--train_batch_size=4", "--prior_train_batch_size=4", *text, "two")
    train("--train_batch_size=8", "--prior_train_batch_size=8", *text, "one")
    assert_same_models("two", "one")


@pytest.mark.slow
def test_another_engine_than_that_of_the_checkpoint_is_refused(workplace):
    make_folder(workplace / "images")
    launch("fsdp2", workplace, "--train_batch_size=4", "--train=flow", "--output_dir=out")
    with pytest.raises(ValueError, match="`resume_from_checkpoint` .*engine: 'fsdp' -> 'data_parallel'"):
        train("--train_batch_size=8", "--train=flow", "--output_dir=out", "--resume_from_checkpoint=latest")


@pytest.mark.slow
def test_what_sharded_weights_cannot_do_is_refused_before_the_first_step(workplace):
    make_folder(workplace / "images")
    with pytest.raises(AssertionError, match="`derivative` must be 'central' where the weights are sharded"):
        launch("fsdp2", workplace, "--objective=mean_flow", "--output_dir=two")
    assert not os.path.exists("two")


# ------------------------------------------------------------------------------------------------- sharded checkpoints


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


def test_an_index_that_would_run_something_is_refused(workplace):
    from torch.distributed import checkpoint

    state = {"a": torch.arange(4.0), "count": 3}
    checkpoint.save(state, checkpoint_id="true")
    check_sharded_checkpoint("true")
    os.mkdir("trap")
    Path("trap/.metadata").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="no part of a checkpoint: it asks for .*mkdir"):
        check_sharded_checkpoint("trap")
    assert not os.path.exists("sprung")


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_file_of_deepspeed_that_would_run_something_is_refused(workplace, protocol):
    os.mkdir("trap")
    torch.save({"optimizer": Trap()}, "trap/mp_rank_00_model_states.pt", pickle_protocol=protocol)
    with pytest.raises(ValueError, match="mp_rank_00_model_states.pt' is no part of a checkpoint"):
        check_sharded_checkpoint("trap")
    assert not os.path.exists("sprung")
