"""Speed, memory, growth and quality of the supervoxels, as tables.

    python benchmarks/supervoxels.py
    python benchmarks/supervoxels.py --data data/CHAOST2/chaos_MR_T2_normalized --picture borders.png

Without `--data` the volumes are synthetic. Every row is measured in a process of its own: wall and processor time are
medians of `--repeats` calls, memory is the peak above what was resident before the first call (Linux only).
"""

import ctypes
import multiprocessing
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from matplotlib.figure import Figure
from scipy import ndimage
from skimage import segmentation

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from supervoxels import felzenszwalb, partitions, rescale, supervoxels
from util.commands import parser
from util.volume import read_volume

SIZES = (1000, 2000, 5000)
SEVEN_SIZES = (50, 100, 200, 400, 800, 1600, 3200)
EPISODE_PIXELS = 200  # a training episode wants that many pixels in its first slice, and a neighbouring slice


@dataclass(frozen=True)
class Source:
    """A volume to cut: `load` gives it on the 0..255 scale, with its spacing `(sz, sx, sy)`."""

    name: str
    min_size: int
    load: Callable[[], tuple[np.ndarray, tuple[float, float, float]]]


def of_file(path):
    """A real scan."""
    volume = read_volume(path)
    return rescale(volume.array), spacing_of(volume)


def spacing_of(volume):
    """In the kernel's order."""
    x, y, z = volume.geometry.spacing
    return z, x, y


def body(shape, spacing=(7.7, 1.25, 1.25)):
    """A scan-like volume: air, a round trunk, smooth regions of different brightness, noise, 1000 whole levels."""
    random = np.random.default_rng(0)
    field = ndimage.gaussian_filter(random.standard_normal(shape), (2, 12, 12))
    organs = np.digitize(field / field.std(), (-1, -0.3, 0.4, 1.1)) * 150.0 + 100
    y, x = np.ogrid[-1 : 1 : shape[1] * 1j, -1 : 1 : shape[2] * 1j]
    trunk = (y / 0.7) ** 2 + (x / 0.9) ** 2 < 1
    texture = ndimage.gaussian_filter(random.standard_normal(shape), (0, 0.7, 0.7)) * 60
    return rescale(np.round(np.clip((organs + texture) * trunk, 0, 1000))), spacing


def ramp(shape):
    """Falls quadratically in raster order: union-find without path compression goes quadratic on it."""
    return rescale(np.arange(np.prod(shape), dtype=float)[::-1].reshape(shape) ** 2), (7.7, 1.25, 1.25)


SYNTHETIC = (
    Source("CMR-shaped", 1000, partial(body, (15, 256, 256), (7.99, 1.25, 1.25))),
    Source("CHAOST2-shaped", 5000, partial(body, (36, 256, 256))),
    Source("convex ramp", 5000, partial(ramp, (45, 256, 256))),
    Source("SABS-shaped", 5000, partial(body, (100, 256, 256), (3.0, 1.25, 1.25))),
)


def fast_seven_sizes(image, spacing, min_size):
    """The partitions of seven minimum sizes in one walk, one array at a time."""
    for _ in partitions(image, spacing=spacing, min_sizes=SEVEN_SIZES):
        pass


def skimage_slices(image, spacing, min_size):
    """2D superpixels, slice by slice, as SSL-ALPNet makes them."""
    return np.stack([segmentation.felzenszwalb(plane, min_size=400, sigma=1) for plane in image])


def skimage_slic(image, spacing, min_size):
    """3D SLIC with as many clusters as minimum sizes fit."""
    z, x, y = spacing
    count = image.size // min_size
    return segmentation.slic(image, n_segments=count, spacing=(z, y, x), compactness=10, channel_axis=None)


def itk_slic(image, spacing, min_size):
    """3D SLIC of SimpleITK on one thread, with a grid of the same cluster size."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    side = max(2, round((min_size / 4) ** 0.5))
    scan = sitk.GetImageFromArray(image.astype(np.float32))
    return sitk.GetArrayFromImage(sitk.SLIC(scan, superGridSize=[side, side, 4]))


METHODS = {
    "fast": felzenszwalb,
    "fast-7-sizes": fast_seven_sizes,
    "fast-2-threads": partial(felzenszwalb, threads=2),
    "sort-all-edges": partial(felzenszwalb, kernel="oracle"),
    "skimage-2d-slices": skimage_slices,
    "skimage-slic-3d": skimage_slic,
    "simpleitk-slic-3d": itk_slic,
}


def measure(source, method, repeats):
    """Wall seconds, processor seconds and peak bytes of one method on one volume, in this process."""
    image, spacing = source.load()
    # imports and first-time work are not what is measured
    METHODS[method](image[:2, :16, :16], spacing=spacing, min_size=20)
    before, wall, processor = forget_peak(), [], []
    for _ in range(repeats):
        begin, begin_processor = time.perf_counter(), time.process_time()
        METHODS[method](image, spacing=spacing, min_size=source.min_size)
        wall.append(time.perf_counter() - begin)
        processor.append(time.process_time() - begin_processor)
    peak = None if before is None else status("VmHWM") - before
    return image.size, statistics.median(wall), statistics.median(processor), peak


def status(key):
    """A line of /proc/self/status in bytes."""
    return 1024 * int(re.search(rf"^{key}:\s+(\d+)", Path("/proc/self/status").read_text("utf-8"), re.MULTILINE)[1])


def forget_peak():
    """Start the peak memory anew and return what is resident now; None if the system cannot."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # memory that was freed but not given back would hide what is used next
        Path("/proc/self/clear_refs").write_text("5")
        return status("VmRSS")
    except (OSError, AttributeError):
        return None


def in_fresh_process(*arguments):
    """`measure` if no earlier call has left memory behind."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, arguments)


def table(title, heads, rows):
    """Print one Markdown table."""
    print(f"\n{title}\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}", flush=True)
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |", flush=True)


def speed_rows(sources, methods, repeats):
    """One row per volume and method."""
    for source in sources:
        reference = None
        for method in methods:
            voxels, wall, processor, peak = in_fresh_process(source, method, repeats)
            reference = reference or wall
            memory = ("-", "-") if peak is None else (f"{peak / 2**20:.0f}", f"{peak / voxels:.0f}")
            yield source.name, method, f"{wall:.3f}", f"{processor:.3f}", *memory, f"{wall / reference:.2f}"


def growth_rows(repeats):
    """Time per voxel as volumes grow."""
    for kind, draw in (("body", body), ("ramp", ramp)):
        for times in (1, 2, 4, 8):
            source = Source(kind, 5000, partial(draw, (12 * times, 256, 256)))
            voxels, wall, processor, _ = in_fresh_process(source, "fast", repeats)
            yield kind, f"x{times}", voxels, f"{wall:.3f}", f"{processor:.3f}", f"{1e9 * processor / voxels:.0f}"


def quality_rows(images):
    """How good the supervoxels are as stand-ins for organs, averaged over the scans that show the organ."""
    found = {}
    for path in images:
        label_path = path.with_name(path.name.replace("image_", "label_"))
        if not label_path.exists():
            continue
        scan, organs = read_volume(path), read_volume(label_path).array.astype(np.int64)
        for min_size in SIZES:
            made = supervoxels(scan.array, spacing=spacing_of(scan), min_size=min_size)
            usable = episodes(made)
            for organ, dice, error in organ_scores(made, organs):
                found.setdefault((min_size, organ), []).append((dice, error, usable))
    for (min_size, organ), scores in sorted(found.items()):
        dice, error, usable = np.mean(scores, axis=0)
        yield min_size, organ, len(scores), f"{dice:.3f}", f"{error:.3f}", f"{usable:.1f}"


def organ_scores(made, organs):
    """Yield (organ, best Dice of a single supervoxel, undersegmentation error) for every organ of a scan.

    The error is the sum over supervoxels of min(inside, outside) voxels, relative to the organ: what a union of whole
    supervoxels must get wrong (Neubert and Protzel 2012).
    """
    count = organs.max() + 1
    overlap = np.bincount((made * count + organs).ravel(), minlength=(made.max() + 1) * count).reshape(-1, count)
    sizes = overlap.sum(1)
    for organ in range(1, count):
        inside, whole = overlap[:, organ], overlap[:, organ].sum()
        if whole:
            dice = 2 * inside[1:] / (sizes[1:] + whole)
            yield organ, dice.max(initial=0), np.minimum(inside, sizes - inside).sum() / whole


def episodes(made):
    """Number of supervoxels that pass the test of an episode: 200 pixels in a slice, and some in the next."""
    areas = np.stack([np.bincount(plane.ravel(), minlength=made.max() + 1)[1:] for plane in made])
    return int(((areas[:-1] >= EPISODE_PIXELS) & (areas[1:] > 0)).any(0).sum())


def picture(path, image_path):
    """Draw the slice with most organs: the scan with supervoxel borders for every minimum size, and the organs."""
    scan = read_volume(image_path)
    label_path = image_path.with_name(image_path.name.replace("image_", "label_"))
    organs = read_volume(label_path).array if label_path.exists() else np.zeros_like(scan.array)
    counts = [(len(np.unique(plane)), (plane > 0).sum()) for plane in organs]
    middle = max(range(len(organs)), key=counts.__getitem__) if organs.any() else len(organs) // 2
    plane = rescale(scan.array)[middle]
    plane = plane / np.percentile(plane, 99.5)
    panels = {f"minimum size {m}": supervoxels(scan.array, spacing=spacing_of(scan), min_size=m)[middle] for m in SIZES}
    figure = Figure(figsize=(5 * (len(panels) + 1), 5.3), layout="constrained")
    axes = figure.subplots(1, len(panels) + 1)
    for axis, (title, made) in zip(axes, panels.items(), strict=False):
        axis.imshow(segmentation.mark_boundaries(np.clip(plane, 0, 1), made, color=(1, 0.85, 0), mode="inner"))
        axis.set_title(title)
    axes[-1].imshow(plane, cmap="gray", vmin=0, vmax=1)
    shown = np.ma.masked_equal(organs[middle], 0)
    axes[-1].imshow(shown, cmap="tab10", vmin=0, vmax=9, alpha=0.5, interpolation="none")
    axes[-1].set_title(f"organs, {image_path.name}, slice {middle}")
    for axis in axes:
        axis.axis("off")
    figure.savefig(path, dpi=80)
    print(f"\n{path}: slice {middle} of {image_path.name}")


def main():
    """Run the parts asked for."""
    command = parser(__doc__)
    add = command.add_argument
    add("--data", type=Path, metavar="FOLDER", help="folder of image_<N>.nii.gz, perhaps label_<N>.nii.gz")
    add("--scans", type=int, default=4, help="real scans used for speed (default: 4); quality uses all")
    add("--min-size", type=int, default=5000, help="for real scans")
    add("--repeats", type=int, default=3, help="calls a measurement")
    help_text = f"which of: {', '.join(METHODS)} (default: all)"
    add("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD", help=help_text)
    parts = ["speed", "growth", "quality"]
    help_text = f"which of: {', '.join(parts)} (default: all)"
    add("--parts", nargs="+", default=parts, choices=parts, metavar="PART", help=help_text)
    add("--picture", type=Path, metavar="FILE.png", help="borders beside the organs; needs --data")
    options = command.parse_args()
    images = []
    if options.data:
        images = sorted(options.data.glob("image_*.nii.gz"), key=lambda path: int(path.name[6:-7]))
        if not images:
            command.error(f"--data {options.data}: no image_<N>.nii.gz in this folder")
    real = [Source(path.name[:-7], options.min_size, partial(of_file, path)) for path in images[: options.scans]]
    if "speed" in options.parts:
        heads = ("volume", "method", "wall s", "processor s", "peak MiB", "bytes/voxel", "time / first")
        table("Speed and memory", heads, speed_rows([*SYNTHETIC, *real], options.methods, options.repeats))
    if "growth" in options.parts:
        heads = ("volume", "size", "voxels", "wall s", "processor s", "ns/voxel")
        table("Growth, one thread", heads, growth_rows(options.repeats))
    if "quality" in options.parts and images:
        heads = ("min_size", "organ", "scans", "best Dice", "undersegmentation error", "supervoxels fit for episodes")
        table("Quality as pseudo-labels", heads, quality_rows(images))
    if options.picture:
        if not images:
            command.error("--picture needs --data")
        picture(options.picture, images[0])


if __name__ == "__main__":
    main()
