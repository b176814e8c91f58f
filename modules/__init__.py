"""Networks, heads, normalisers, objectives and schedules: torch alone."""
