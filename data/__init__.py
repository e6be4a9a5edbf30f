"""One prepare module per data set, and how to get the data."""
