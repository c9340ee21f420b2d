# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Each test process uses one thread, since there are as many processes as cores."""

import os


os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch reads it at import, here and in the processes that tests start

import torch  # noqa: E402


torch.set_num_threads(1)
