"""The option ``--int8`` of verbs that continue texts."""

INT8 = ("none", "weights", "cache", "both")
INT8_HELP = "what is in 8 bits: weights, cache (keys and values) or both; a token has less to read (default: none)"
