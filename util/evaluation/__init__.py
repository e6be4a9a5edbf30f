"""Tasks, how slices and volumes are segmented, metrics."""
