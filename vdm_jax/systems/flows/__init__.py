"""Flows: networks of velocities, on straight paths and others, and couplings that straighten."""
