"""From raw documents to weighted, clean, decontaminated token shards: GPT-3's data recipe (arXiv 2005.14165)."""
