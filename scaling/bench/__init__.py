"""Measures the framework: training, decoding, dispatch; beside PyTorch in the same run where it is installed."""
