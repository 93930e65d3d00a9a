"""Sub-commands of ``osrl-unlearn``: each file has ``add_arguments(parser)`` and ``main(args)``."""
