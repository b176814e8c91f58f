"""Trust regions: projections of the policy's distribution, one per file."""
