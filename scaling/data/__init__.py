"""Text to tokens to batches: sources, tokenizers, token shards, the loader, and the embedded corpus."""
