"""Published systems: compositions of the library's parts that a config can train.

A system holds no data and no numbers of a run.  Each module has `default_config()`, which returns
the fields that the system reads.  It also has functions from a config and a network to an
`Experiment`.
"""
