# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""One thread for each test process: there are as many processes as cores."""

import os


os.environ.setdefault("OMP_NUM_THREADS", "1")  # read as torch is loaded, by this process and by those that tests start

import torch  # noqa: E402


torch.set_num_threads(1)
