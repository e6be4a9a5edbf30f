"""From files to episodes and test tasks."""
