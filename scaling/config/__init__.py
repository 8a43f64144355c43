"""Everything about knobs. Experiment files need ``default_config`` alone."""

from scaling.config.schema import default_config

__all__ = ["default_config"]
