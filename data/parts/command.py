"""The command line of the preparations: `python -m data.chaost2 RAW OUT [options]`, the same for every data set."""

import argparse
from dataclasses import replace
from pathlib import Path

from data.parts.convert import Converter, Finish, convert
from dataloaders.raw.preparation import Plan
from util.commands import add_backend, backend_of, guarded, jobs, parser
from util.errors import UserError


def add_options(command: argparse.ArgumentParser, plan: Plan | None = None) -> None:
    """What every preparation command understands; `plan` has the defaults, None: they are guessed."""
    spacing = "guessed" if plan is None else " ".join(map(str, plan.spacing)) if plan.spacing else "as stored"
    size = "guessed" if plan is None else plan.size or "as stored"
    add = command.add_argument
    help_text = "as the published preparation did it, defects included (data/README.md lists them)"
    add("--published", action="store_true", help=help_text)
    help_text = "rows, columns and slices stay as stored; default: to the left, the front and the head"
    add("--keep-orientation", action="store_true", help=help_text)
    help_text = "accept labels whose header places them elsewhere than their image"
    add("--trust-label-voxels", action="store_true", help=help_text)
    help_text = "prepare scans whose header contradicts itself or tells no orientation, too, as viewers show them"
    add("--accept-doubtful-headers", action="store_true", help=help_text)
    help_text = f"mm of the prepared voxels (default: {spacing})"
    add("--spacing", type=float, nargs=3, metavar=("X", "Y", "Z"), help=help_text)
    help_text = f"rows and columns of the prepared slices (default: {size})"
    add("--size", type=int, metavar="PIXELS", help=help_text)
    add("--jobs", type=jobs, default=-1, help="scans at once; the result is the same (default: one per core)")
    add_backend(add)
    add("--overwrite", action="store_true", help="replace the scans OUT already holds")


def chosen_plan(options: argparse.Namespace, plan: Plan, published: Plan) -> Plan:
    """The converter's plan with what the command line changes.

    Raises:
        UserError: a number makes no sense.
    """
    plan = published if options.published else plan
    if options.keep_orientation:
        plan = replace(plan, orient=False)
    if options.spacing:
        if min(options.spacing) <= 0:
            raise UserError(f"--spacing {options.spacing}: three lengths in mm are needed, each above 0")
        plan = replace(plan, spacing=tuple(options.spacing))
    if options.size is not None:
        if options.size < 8:
            raise UserError(f"--size {options.size}: at least 8 rows and columns")
        plan = replace(plan, size=options.size)
    return plan


def work(
    options: argparse.Namespace, converter: Converter, raw: Path, plan: Plan, finish: Finish = lambda _: None
) -> dict[int | str, str]:
    """`convert` as the command line says; returns the failures."""
    return convert(
        converter,
        raw,
        options.out,
        plan,
        trust_voxels=options.trust_label_voxels,
        accept_doubts=options.accept_doubtful_headers,
        jobs=options.jobs,
        backend=backend_of(options),
        overwrite=options.overwrite,
        finish=finish,
    )


def main(converter: Converter, about: str, arguments: list[str] | None = None) -> int:
    """A preparation command; returns the exit status, 0 if every scan found is prepared."""
    command = parser(about, f"python -m data.{converter.name.lower()}")
    command.add_argument("raw", metavar="RAW", type=Path, help="folder the download was unpacked to")
    out = Path("data") / converter.name
    help_text = f"folder to write to (default: {out})"
    command.add_argument("out", metavar="OUT", type=Path, nargs="?", default=out, help=help_text)
    add_options(command, converter.plan)
    options = command.parse_args(arguments)

    def prepare_all() -> dict[int | str, str]:
        return work(options, converter, options.raw, chosen_plan(options, converter.plan, converter.published))

    return guarded(prepare_all)
