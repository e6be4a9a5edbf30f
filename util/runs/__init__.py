"""Folders of runs, checks of a configuration, losses, processes, and the Sacred experiment."""
