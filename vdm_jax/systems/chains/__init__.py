"""Systems whose process is a published chain of T steps."""
