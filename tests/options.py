"""The options of config.py with their defaults."""

import config
from util.runs.experiment import CommandLine, plain


def options(**updates) -> dict:
    """All options as the programs would see them."""
    experiment = CommandLine("probe", config)
    experiment.main(lambda: None)
    return plain(experiment._create_run("print_config", config_updates=updates).config)


def defaults(section: str, **updates) -> dict:
    """A section such as "episode"."""
    return options(**updates)[section]


EPISODE = defaults("episode")
