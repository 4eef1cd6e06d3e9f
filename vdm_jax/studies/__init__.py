"""Programs on small data, each of which shows one idea: in a table, a picture, or both."""
