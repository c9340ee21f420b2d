# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The data of a training: which files are the set, how they are decoded, and what is cached of them."""
