"""Speed, size and precision: the measurements of `scripts/benchmark.py`.

Each module measures one thing, with the same code that training, evaluation and sampling use.  It
returns plain numbers, whose names end in their units.  `measurements` has the measurements by name,
and `report` prints the numbers.
"""
