"""The options of config.py with their defaults."""

import config
from util.runs.experiment import CommandLine, plain


def defaults(section: str, **updates) -> dict:
    """A section such as "episode" as the programs would see it."""
    experiment = CommandLine("probe", config)
    experiment.main(lambda: None)
    return plain(experiment._create_run("print_config", config_updates=updates).config)[section]


EPISODE = defaults("episode")
