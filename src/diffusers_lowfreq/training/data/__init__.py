# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Images, their latents and their captions: read, degraded, encoded, cached or streamed."""
