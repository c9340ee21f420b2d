# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""A run that is killed, asked to leave, or out of disk goes on as if nothing had been."""

import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import psutil
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from scripts import EXAMPLES, load_script, make_folder, signalled_in_step, workplace


pytestmark = pytest.mark.usefixtures(workplace.__name__)

MODEL = "diffusion_pytorch_model.safetensors"
NUM_IMAGES = 18
STEPS = 500  # of the runs that are killed
RUN = "--train_data_dir images --resolution 16 --transformer_size 2x2x8 --prior_size 2x2x8 --patch_size 4 --lr_warmup_steps 1 "
RUN += "--train flow --noise_ratio_range 0.3 0.8 --num_validation_images 2"


@pytest.fixture
def images(workplace):
    return make_folder(workplace / "images", NUM_IMAGES)


def train(script, *command):
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    script.main(script.parse_args([*command, *RUN.split()]))


def checkpoints(folder: str) -> list[int]:
    """The steps of the whole checkpoints."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted(int(name.removeprefix("checkpoint-")) for name in names if name.startswith("checkpoint-"))


def assert_same_run(actual: str, expected: str, **tolerance):
    """The averaged weights that the run leaves, and all of the state at its end."""
    steps = checkpoints(expected)[-1]
    for name in ("transformer", f"checkpoint-{steps}/transformer", f"checkpoint-{steps}/transformer_ema"):
        a, b = (load_file(os.path.join(folder, name, MODEL)) for folder in (actual, expected))
        torch.testing.assert_close(a, b, **tolerance)
    a, b = (torch.load(os.path.join(folder, f"checkpoint-{steps}", "optimizer.bin")) for folder in (actual, expected))
    torch.testing.assert_close(a["state"], b["state"], **tolerance)


# -------------------------------------------------------------------------------------------------------------- SIGTERM


def test_a_run_that_is_asked_to_leave_saves_and_goes_on(images, capsys):
    script = load_script("train_lowfreq")
    train(script, "--output_dir=undisturbed", "--max_train_steps=6")
    before = signal.getsignal(signal.SIGTERM)
    with signalled_in_step(3), pytest.raises(SystemExit) as left:
        train(script, "--output_dir=out", "--max_train_steps=6")
    assert left.value.code == 128 + signal.SIGTERM
    assert "checkpoint-3 is saved; go on with `--resume_from_checkpoint latest`" in capsys.readouterr().out
    assert checkpoints("out") == [3] and not os.path.exists("out/model_index.json")
    train(script, "--output_dir=out", "--max_train_steps=6", "--resume_from_checkpoint=latest")
    assert_same_run("out", "undisturbed", rtol=0, atol=0)
    assert signal.getsignal(signal.SIGTERM) == before


# ------------------------------------------------------------------------------------------------------- a full disk


@contextmanager
def full_disk():
    """No file may grow beyond 16 KiB, as on a disk that has no more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 1024, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_stops_the_run_with_the_last_checkpoint_whole(images, monkeypatch):
    script = load_script("train_lowfreq")
    command = "--max_train_steps=4", "--checkpointing_steps=2"
    train(script, "--output_dir=undisturbed", *command)
    save = Accelerator.save_state

    def save_on_a_full_disk(accelerator, folder):
        with full_disk() if "checkpoint-4" in folder else nullcontext():
            return save(accelerator, folder)

    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "save_state", save_on_a_full_disk)
        message = "checkpoint of step 4 cannot be written .* disk full.* checkpoint-2 in 'out' is whole"
        with pytest.raises(OSError, match=message):
            train(script, "--output_dir=out", *command)
    assert [name for name in os.listdir("out") if "checkpoint" in name] == ["checkpoint-2"]
    train(script, "--output_dir=out", "--resume_from_checkpoint=latest", *command)
    assert_same_run("out", "undisturbed", rtol=0, atol=0)


def test_a_disk_that_is_full_at_the_first_checkpoint_says_that_there_is_none(images, monkeypatch):
    script = load_script("train_lowfreq")
    monkeypatch.setattr(Accelerator, "save_state", full_disk()(Accelerator.save_state))
    with pytest.raises(OSError, match="checkpoint of step 4 cannot be written .* there is none before it"):
        train(script, "--output_dir=out", "--max_train_steps=4")
    assert not [name for name in os.listdir("out") if "checkpoint" in name]


def test_what_torch_raises_for_a_sharded_checkpoint_is_told_alike(images, monkeypatch):
    """It is no `Exception`."""
    from torch.distributed.checkpoint.api import CheckpointException

    def fail(*args, **kwargs):
        raise CheckpointException("no space", {0: (OSError(28, "No space left on device"), None)})

    monkeypatch.setattr(Accelerator, "save_state", fail)
    with pytest.raises(OSError, match="(?s)checkpoint of step 4 cannot be written .* disk full"):
        train(load_script("train_lowfreq"), "--output_dir=out", "--max_train_steps=4")
    assert not [name for name in os.listdir("out") if "checkpoint" in name]


# -------------------------------------------------------------------------------------------------------------- SIGKILL

# Run a script and write down which images each step reads
LOGGED = """
import json, os, runpy, sys
from diffusers_lowfreq.training import KeyedBatchSampler
batches = KeyedBatchSampler.__iter__

def logged(self):
    for batch in batches(self):
        with open(f"read-{os.environ.get('RANK', 0)}.txt", "a") as file:
            file.write(json.dumps([index for index, _ in batch]) + chr(10))
        yield batch

KeyedBatchSampler.__iter__ = logged
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
sys.stdout.flush()
os._exit(0)
"""


def read_by_step(processes: int, since: list[int]) -> list[list[int]]:
    """The images that a launch has read, step by step: what the files of all processes have got since."""
    lines = [Path(f"read-{rank}.txt").read_text().splitlines()[since[rank] :] for rank in range(processes)]
    return [[index for line in of_step for index in json.loads(line)] for of_step in zip(*lines)]


def lines_read(processes: int) -> list[int]:
    files = [Path(f"read-{rank}.txt") for rank in range(processes)]
    return [len(file.read_text().splitlines()) if file.exists() else 0 for file in files]


def start(processes: int, output_dir: str, checkpointing_steps: int = 1, *launch: str, **options) -> subprocess.Popen:
    """Start the training, resumable, with options of the launcher and of `Popen`."""
    batch = 8 // processes
    command = [sys.executable]
    if processes > 1:
        launcher = (
            "-m accelerate.commands.launch --multi_gpu --num_machines 1 --main_process_port 0 --mixed_precision no"
        )
        command += [*launcher.split(), f"--num_processes={processes}", "--dynamo_backend=no", *launch]
    command += ["logged.py", str(EXAMPLES / "train_lowfreq.py"), *RUN.split(), f"--train_batch_size={batch}"]
    command += [f"--output_dir={output_dir}", "--resume_from_checkpoint=latest", f"--max_train_steps={STEPS}"]
    command += [
        f"--checkpointing_steps={checkpointing_steps}",
        "--checkpoints_total_limit=2",
        "--validation_steps=100000",
    ]
    environment = {"HF_HOME": os.path.abspath("hf"), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    with open("log.txt", "a") as log:
        return subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log, **options)


def kill(run: subprocess.Popen):
    """Kill a launcher and its processes, which have sessions of their own."""
    launcher = psutil.Process(run.pid)
    for process in [launcher, *launcher.children(recursive=True)]:
        process.kill()


def wait_for_steps(run: subprocess.Popen, since: list[int], number: int = 1):
    """Wait until each process has read so many batches."""
    while run.poll() is None and not all(a >= b + number for a, b in zip(lines_read(len(since)), since)):
        time.sleep(0.01)
    assert run.poll() is None, Path("log.txt").read_text()[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "kills"), [(1, 6), (2, 20)])
def test_kills_leave_no_trace(images, processes, kills):
    """Every step writes a checkpoint, so that many of the kills fall into the writing of one."""
    Path("logged.py").write_text(LOGGED)
    assert start(processes, "undisturbed").wait() == 0, Path("log.txt").read_text()[-3000:]
    expected = read_by_step(processes, [0] * processes)
    for rank in range(processes):
        os.remove(f"read-{rank}.txt")
    rng = random.Random(0)
    history, in_writing = {}, 0
    for launch in range(kills + 1):
        first, since = (checkpoints("out") or [0])[-1], lines_read(processes)
        run = start(processes, "out")
        if launch < kills:
            wait_for_steps(run, since)
            time.sleep(rng.uniform(0, 0.6))
            assert run.poll() is None, Path("log.txt").read_text()[-3000:]
            kill(run)
        code = run.wait()
        for step, indices in enumerate(read_by_step(processes, since), first):
            history[step] = indices
        in_writing += any(name.startswith(".checkpoint") for name in os.listdir("out"))
    assert code == 0, Path("log.txt").read_text()[-3000:]
    assert in_writing >= kills // 6
    assert [history[step] for step in range(STEPS)] == expected
    stream = [index for step in expected for index in step]
    for epoch in range(len(stream) // NUM_IMAGES):
        assert sorted(stream[epoch * NUM_IMAGES : (epoch + 1) * NUM_IMAGES]) == list(range(NUM_IMAGES))
    tolerance = {"rtol": 0, "atol": 0} if processes == 1 else {"rtol": 1e-3, "atol": 2e-6}
    assert_same_run("out", "undisturbed", **tolerance)


@pytest.mark.slow
def test_two_processes_leave_together_when_one_is_asked_or_the_launcher(images):
    Path("logged.py").write_text(LOGGED)
    assert start(2, "undisturbed", checkpointing_steps=STEPS).wait() == 0
    step = 0
    for asked in ("worker", "launcher"):
        before = lines_read(2)
        run = start(2, "out", checkpointing_steps=STEPS)
        wait_for_steps(run, before)
        pid = psutil.Process(run.pid).children()[-1].pid if asked == "worker" else run.pid
        os.kill(pid, signal.SIGTERM)
        assert run.wait(timeout=60) != 0
        assert checkpoints("out")[-1] > step
        step = checkpoints("out")[-1]
    assert step < STEPS
    assert start(2, "out", checkpointing_steps=STEPS).wait() == 0
    assert_same_run("out", "undisturbed", rtol=1e-3, atol=2e-6)


@pytest.mark.slow
def test_two_processes_stop_on_a_full_disk(images):
    Path("logged.py").write_text(LOGGED)
    run = start(2, "out")
    wait_for_steps(run, [0, 0], number=5)
    kill(run)
    run.wait()
    whole = checkpoints("out")[-1]
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    full = start(2, "out", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (48 * 1024, hard)))
    assert full.wait(timeout=120) != 0
    log = Path("log.txt").read_text()
    assert f"The checkpoint of step {whole + 1} cannot be written" in log
    assert f"checkpoint-{whole} in 'out' is whole: go on from it" in log
    assert checkpoints("out")[-1] == whole
    assert not [name for name in os.listdir("out") if name.startswith(".")]


@pytest.mark.slow
def test_the_launcher_starts_a_run_again_of_which_a_process_has_died(images, monkeypatch):
    """As the page on scale says. Without the variable, the new processes may look for the old ones."""
    Path("logged.py").write_text(LOGGED)
    assert start(2, "undisturbed", STEPS).wait() == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = "--max_restarts=1", "--rdzv_backend=c10d", f"--main_process_port={port}"
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    run = start(2, "out", 20, *launch)
    while run.poll() is None and not checkpoints("out"):
        time.sleep(0.01)
    os.kill(psutil.Process(run.pid).children()[-1].pid, signal.SIGKILL)
    try:
        code = run.wait(timeout=200)
    finally:
        if run.poll() is None:
            kill(run)
    assert code == 0, Path("log.txt").read_text()[-3000:]
    assert_same_run("out", "undisturbed", rtol=1e-3, atol=2e-6)
