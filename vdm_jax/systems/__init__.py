"""Published systems: how parts of the library are composed into something that a config trains.

A system holds no data and no numbers of a run.  Each module has `default_config()`, the fields it
reads, and functions from a config and a network to an `Experiment`.
"""
