"""The machine: devices, processes that work together, and files that are whole or do not exist."""
