# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The version of this library; `setup.py` and the release workflow read it here."""

__version__ = "0.1.0"
