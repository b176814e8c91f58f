"""Lightning callbacks: evaluation, progress and signals."""
