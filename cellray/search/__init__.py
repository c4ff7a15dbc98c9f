"""Which configuration comes next, and which is ended early."""
