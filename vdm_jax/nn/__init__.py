"""Networks.  No network knows schedules, losses or samplers."""
