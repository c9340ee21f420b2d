# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Configurations carry the version of this plugin that wrote them."""

import json

from packaging.version import Version

from ..version import __version__


VERSION_KEY = "_diffusers_lowfreq_version"


class VersionedConfigMixin:
    """
    Write the version of this plugin into a configuration, and refuse settings that only a newer version knows.

    diffusers ignores unknown settings. A model of a newer version would then load as a different model, so this is an error.
    Must come before `ConfigMixin` or `DiffusionPipeline` in the list of bases.
    """

    def to_json_string(self) -> str:
        config = json.loads(super().to_json_string()) | {VERSION_KEY: __version__}
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    @classmethod
    def extract_init_dict(cls, config_dict, **kwargs):
        written_by = config_dict.get(VERSION_KEY, __version__)
        unknown = sorted(k for k in config_dict.keys() - cls._get_init_keys(cls) if not k.startswith("_"))
        if unknown and Version(written_by) > Version(__version__):
            raise ValueError(
                f"`{unknown[0]}` in the configuration of a {cls.__name__} is unknown to diffusers-lowfreq {__version__}: it was "
                f"written by {written_by}. Install that version or a newer one."
            )
        return super().extract_init_dict(config_dict, **kwargs)
