"""Starts runs and sweeps on this machine, Cloud TPU, GKE or SkyPilot (docs/launching.md)."""
