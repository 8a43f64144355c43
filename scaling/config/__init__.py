"""The knobs: their declaration, files and overrides, derived values. Experiment files need only ``default_config``."""

from scaling.config.schema import default_config

__all__ = ["default_config"]
