"""One file a verb: ``add_options(parser)`` and ``run(options)``. Nothing else imports these."""
