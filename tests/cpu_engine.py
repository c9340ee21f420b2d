# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Run a script on CPU processes under an engine that accelerate only offers on accelerators.

    accelerate launch --config_file examples/accelerate/fsdp2.yaml tests/cpu_engine.py examples/train_lowfreq.py …

The state that all of accelerate shares is changed, as if the processes ran on an accelerator. FSDP2 and DeepSpeed are the real
ones.
"""

import os
import runpy
import sys

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType


def pretend():
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        state = PartialState(cpu=False)
        group = torch.distributed
        state.num_processes, state.process_index = group.get_world_size(), group.get_rank()
        state.local_process_index = state.process_index
    else:
        state = PartialState(cpu=True)
        state._shared_state["distributed_type"] = DistributedType.MULTI_GPU


if __name__ == "__main__":
    pretend()
    sys.argv = sys.argv[1:]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as left:
        code = left.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(
        code or 0
    )  # without teardown: gloo's threads may free tensors after the interpreter is gone, which aborts
