"""How the scans of a data set were prepared: what its preparation left on record, or else what it does."""

import json
from pathlib import Path

from data import chaost2, cmr, sabs
from data.parts.convert import MANIFEST
from dataloaders.raw.preparation import Plan
from util.dataset import Dataset
from util.errors import UserError

DEFAULTS = {module.CONVERTER.name: module.PLAN for module in (chaost2, sabs, cmr)}
BY_MODALITY = {"MR": Plan(percentile=99.5), "CT": Plan(window=(-125, 275))}


def plan_of(name: str, dataset: Dataset, root: Path) -> Plan:
    """The plan of a data set.

    Args:
        name: as in config.py.
        dataset: its row; without a record and a converter of its own its modality says what is usual.
        root: folder of the data sets; preparation.json lies beside the scans if a command of this project made them.

    Raises:
        UserError: preparation.json cannot be read.
    """
    file = (Path(root) / dataset.images).parent / MANIFEST
    if not file.is_file():
        return DEFAULTS.get(name, BY_MODALITY[dataset.modality])
    try:
        return Plan.from_plain(json.loads(file.read_text(encoding="utf-8"))["parameters"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: is damaged; prepare the data set again with --overwrite") from error
