"""Settings from three places, later ones win: dataclasses, a YAML file, overrides.

1. `drafters`  the parameters of each drafter
2. `training`  how heads are trained
3. `whole`     all sections together     -> Config
4. `reading`   file and overrides over it -> Config

Classes elsewhere take plain parameters; only `build.py` and the command line read a `Config`.
Values are checked where they are used; here only names and types are.
"""

from mmspec.config.drafters import (
    CascadeConfig,
    CompressedKVConfig,
    DFlashConfig,
    DrafterConfig,
    DraftModelConfig,
    EagleConfig,
    GlideConfig,
    LayerSkipConfig,
    LookaheadConfig,
    MedusaConfig,
    MtpConfig,
    PromptLookupConfig,
    RetrievalConfig,
    TokenRecyclingConfig,
)
from mmspec.config.reading import (
    CONFIG_DIR,
    config_names,
    find_config,
    load_config,
)
from mmspec.config.training import (
    TrainConfig,
    TrainEagle3Config,
    TrainEagleConfig,
    TrainGlideConfig,
    TrainMedusaConfig,
)
from mmspec.config.whole import (
    CacheConfig,
    Config,
    DecodeConfig,
    InputConfig,
    ModelConfig,
)

__all__ = [
    "CONFIG_DIR",
    "CacheConfig",
    "CascadeConfig",
    "CompressedKVConfig",
    "Config",
    "DFlashConfig",
    "DecodeConfig",
    "DraftModelConfig",
    "DrafterConfig",
    "EagleConfig",
    "GlideConfig",
    "InputConfig",
    "LayerSkipConfig",
    "LookaheadConfig",
    "MedusaConfig",
    "ModelConfig",
    "MtpConfig",
    "PromptLookupConfig",
    "RetrievalConfig",
    "TokenRecyclingConfig",
    "TrainConfig",
    "TrainEagle3Config",
    "TrainEagleConfig",
    "TrainGlideConfig",
    "TrainMedusaConfig",
    "config_names",
    "find_config",
    "load_config",
]
