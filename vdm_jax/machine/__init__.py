"""The machine: devices, processes that work together, files that are whole or not there."""
