"""All folds and seeds of a method in one command."""
