"""Commands whose flags are many: the flags and the `main` of one script each."""
