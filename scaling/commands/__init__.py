"""One file for each verb, with ``add_options(parser)`` and ``run(options)``. Only ``scaling.cli`` imports them."""
