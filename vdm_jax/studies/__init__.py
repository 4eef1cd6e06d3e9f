"""Programs on small data. Each shows one idea: in a table, a picture, or both."""
