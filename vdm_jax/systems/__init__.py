"""Whole published systems, composed from the parts."""
