"""Starts runs and sweeps on engines that exist: this machine, Cloud TPU, GKE, SkyPilot (docs/launching.md)."""
