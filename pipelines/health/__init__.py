"""The health report: rules that find problems of a training in its metrics."""
