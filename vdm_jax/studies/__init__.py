"""Programs on small data.  Each program shows one idea, in a table, a picture, or both."""
