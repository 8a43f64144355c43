"""The bias probes of GPT-3."""
