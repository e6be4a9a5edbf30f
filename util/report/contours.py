"""The picture that test.py draws of an organ."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from util.files import whole_file
from util.pictures import caption, grey


def draw_contours(file: Path, title: str, rows: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]]) -> None:
    """A picture of one organ: one row per scan; columns image, truth, prediction.

    Args:
        file: PNG to write.
        title: over the picture.
        rows: (text, image `(H, W)`, truth `(H, W)`, prediction `(H, W)`) of one slice each.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(rows), 3, figsize=(9, 3 * len(rows)), squeeze=False, layout="constrained")
    for (text, image, truth, prediction), line in zip(rows, axes, strict=True):
        for axis, mask, colour in zip(line, (None, truth, prediction), (None, "lime", "orange"), strict=True):
            axis.imshow(grey(image), cmap="gray", vmin=0, vmax=255)
            axis.set_axis_off()
            if mask is not None and mask.any():
                axis.contour(mask, levels=[0.5], colors=colour, linewidths=1.2)
        line[0].set_title(caption(text), fontsize=9, loc="left")
        line[1].set_title("truth", fontsize=9, color="green")
        line[2].set_title("prediction", fontsize=9, color="darkorange")
    figure.suptitle(caption(title), fontsize=11)
    with whole_file(file) as temporary:
        figure.savefig(temporary, dpi=110)
    pyplot.close(figure)
