"""Commands with many flags.  Each module has the flags and the `main` of one script."""
