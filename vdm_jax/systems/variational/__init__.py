"""Systems trained by a variational bound on the likelihood."""
