"""Networks.  They know nothing of schedules, losses or samplers."""
