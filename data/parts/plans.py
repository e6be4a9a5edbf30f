"""How the scans of a data set came to be as they are: what its preparation left on record, or else what it does."""

import json
from pathlib import Path

from data import chaost2, cmr, sabs
from data.parts.manifest import MANIFEST
from dataloaders.raw.preparation import Plan
from util.errors import UserError

DEFAULTS = {
    **{module.CONVERTER.name: module.PLAN for module in (chaost2, sabs, cmr)},
    "PHANTOM": Plan(percentile=99.5),
}


def plan_of(name: str, images: Path) -> Plan:
    """The plan of a data set.

    Args:
        name: as in config.py; a data set that has no default is taken to have its raw intensities.
        images: folder of its scans; preparation.json lies beside it where a command of this project made them.

    Raises:
        UserError: preparation.json cannot be read.
    """
    file = Path(images).parent / MANIFEST
    if not file.is_file():
        return DEFAULTS.get(name, Plan())
    try:
        return Plan.from_plain(json.loads(file.read_text())["parameters"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: is damaged; prepare the data set again with --overwrite") from error
