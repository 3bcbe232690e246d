"""Settings from three places, later ones win: dataclasses, a YAML file, overrides.

1. `drafters`  the parameters of each drafter
2. `training`  how heads are trained
3. `whole`     all sections together     -> Config
4. `reading`   file and overrides over it -> Config

Classes elsewhere take plain parameters; only `build.py` and the command line read a `Config`.
Values are checked where they are used; here only names and types are.
"""

from mmspec.config.drafters import (
    CompressedKVConfig,
    DrafterConfig,
    DraftModelConfig,
    EagleConfig,
    GlideConfig,
    MedusaConfig,
)
from mmspec.config.reading import CONFIG_DIR, config_names, load_config
from mmspec.config.training import TrainConfig
from mmspec.config.whole import CacheConfig, Config, DecodeConfig

__all__ = [
    "CONFIG_DIR",
    "CacheConfig",
    "CompressedKVConfig",
    "Config",
    "DecodeConfig",
    "DraftModelConfig",
    "DrafterConfig",
    "EagleConfig",
    "GlideConfig",
    "MedusaConfig",
    "TrainConfig",
    "config_names",
    "load_config",
]
