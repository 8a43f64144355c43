"""What a training step minimises: one file each, made of pure functions."""
