"""How fast, how large, how precise: the measurements behind `scripts/benchmark.py`.

Each module measures one thing with the parts that training, evaluation and sampling themselves use,
and returns plain numbers, whose names end in their units; `measurements` has them by name, and
`report` prints them.
"""
