"""What a task is: its file, its items, the requests made of them. Nothing here imports JAX."""
