"""Files that a run writes: summary, learning curve and video."""
