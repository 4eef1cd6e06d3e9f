"""Flows: networks of velocities on straight and other paths, and couplings that straighten them."""
