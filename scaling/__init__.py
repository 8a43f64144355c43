"""Train any GPT-3 size from one config, on any mesh; sweep compute; fit the scaling law."""

__version__ = "0.1.0"
