"""Networks that read texts: integer tokens [B, L] -> vectors."""
