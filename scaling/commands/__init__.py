"""The verbs of the command line, one file each: they put the other packages together, and nothing imports them."""
