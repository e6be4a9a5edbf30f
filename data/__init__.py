"""One prepare module a data set, and how to get the data."""
