"""PHANTOM: our own synthetic abdomens, so that everything runs and can be tested without a download.

Three steps that know nothing of each other: `draw_patient` chooses (all randomness of the anatomy), `coverage` answers
how far each tissue covers any physical point, and `phantom_scan` renders one acquisition (a T2-weighted, fat-suppressed
MR as in CHAOST2: contrast, thick slices, blur, coil sensitivity, texture, Rician noise).

Millimetres in the patient's frame: x to the left, y to the back, z to the head (DICOM's LPS), the origin between the
kidneys in the middle of the trunk. Every solid part is an ellipsoid or a smooth union of some; later parts cover
earlier ones, so organs cannot overlap.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from util.errors import UserError
from util.files import whole_file
from util.volume import Geometry, write_volume

LABELS = {1: "liver", 2: "right kidney", 3: "left kidney", 4: "spleen"}
FIELD_OF_VIEW = (320.0, 320.0, 246.4)  # mm (x, y, z): 256 x 256 x 32 voxels of 1.25 x 1.25 x 7.7 mm, as CHAOST2
FOLDER = "phantom_MR_normalized"
MANIFEST = "phantom.json"
SUBSLICES = 4  # a thick slice is the mean of this many thin ones: partial volume
RUN = 32  # points tested together, see `coverage`
TALL = 500.0  # a radius that passes through the whole field of view

# signal of each tissue: mean, spread between patients, spread between its pieces; kidneys are about 0.7
MR_CONTRAST = {
    "air": (0.0, 0.0, 0.0), "subcutaneous fat": (0.16, 0.06, 0.0), "muscle": (0.19, 0.04, 0.02),
    "visceral fat": (0.12, 0.04, 0.0), "lung": (0.04, 0.015, 0.0), "heart": (0.30, 0.08, 0.0),
    "liver": (0.34, 0.05, 0.0), "vein": (0.60, 0.10, 0.12), "spleen": (0.62, 0.12, 0.0),
    "cortex": (0.64, 0.09, 0.0), "medulla": (0.74, 0.08, 0.0), "renal sinus": (0.30, 0.08, 0.05),
    "gallbladder": (0.95, 0.15, 0.0), "pancreas": (0.36, 0.06, 0.0), "bowel wall": (0.40, 0.07, 0.04),
    "bowel content": (0.50, 0.08, 0.28), "colon content": (0.28, 0.08, 0.15), "stomach content": (0.55, 0.15, 0.1),
    "gas": (0.03, 0.0, 0.0), "vessel wall": (0.35, 0.05, 0.0), "blood": (0.12, 0.06, 0.05), "bone": (0.24, 0.06, 0.0),
    "disc": (0.42, 0.12, 0.12), "cortical bone": (0.06, 0.02, 0.0), "cerebrospinal fluid": (1.05, 0.1, 0.0),
    "cord": (0.45, 0.06, 0.0),
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """One piece of anatomy: a row of the tables below, and, varied by `_individual`, a piece of one patient.

    Attributes:
        layers: tissues from the surface inwards, each with its depth in mm, as an onion's.
        parts: ellipsoids `(centre x y z mm, radii mm, turn)`, joined smoothly; none means everywhere. The turn is
            degrees about x, y, z in the tables and a 3 x 3 matrix in a patient.
        carved: ellipsoids taken away.
        label: class of the voxels covered (0: none).
        within: the label that this lies in and leaves as it is (a vessel of the liver); None for everything else.
        margin: mm kept from the outside of the trunk's muscles; None for no bound.
        diaphragm: -1 stays below it, +1 above, 0 does not care.
        place, size, wave: spread of the position (mm) and radii (relative), height of the surface's undulation (mm).
        shade: this piece's own brightness, in spreads of its tissue (third number of the contrast).
    """

    layers: tuple[tuple[str, float], ...]
    parts: tuple = ()
    carved: tuple = ()
    label: int = 0
    within: int | None = None
    margin: float | None = None
    diaphragm: int = 0
    place: float = 3.0
    size: float = 0.06
    wave: float = 1.5
    shade: float = 0.0
    ripple: float = 70.0  # typical length of the undulation, mm
    group: str = ""  # shapes of one group move and grow together
    waves: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))  # (K, 4): wave vectors 1/mm, phase

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper corner, mm, of a box that holds the shape."""
        if not self.parts:
            return np.full(3, -np.inf), np.full(3, np.inf)
        centres = np.array([part[0] for part in self.parts])
        reach = np.array([np.sqrt(turn**2 @ np.square(radii)) for _, radii, turn in self.parts]) + self.wave + 4
        reach += max(0.0, -self.layers[0][1])
        return (centres - reach).min(0), (centres + reach).max(0)


def _both(shape: Shape) -> list[Shape]:
    """The shape on the right side (x < 0, as given) and its mirror image on the left."""

    def mirrored(parts):
        return tuple(((-x, y, z), radii, (a, -b, -c)) for (x, y, z), radii, (a, b, c) in parts)

    return [shape, replace(shape, parts=mirrored(shape.parts), carved=mirrored(shape.carved))]


NO_TURN = (0, 0, 0)
COLON = (  # ascending, two halves of the transverse, descending
    [(-92, 0, -130), (-95, 2, -80), (-88, -8, -42)], [(-86, -30, -40), (-45, -56, -50), (0, -62, -55)],
    [(0, -62, -55), (45, -56, -35), (80, -32, 5)], [(92, 8, 10), (100, 20, -50), (98, 14, -130)],
)  # fmt: skip
# beneath the bowel and in front of it, in the order of painting; positions and radii of an average adult
BEHIND_BOWEL = [
    *_both(Shape((("muscle", 0),), (((-36, 36, -100), (18, 19, 105), NO_TURN),))),  # psoas
    Shape(
        (("heart", 0), ("blood", 12)),
        (((25, -25, 150), (55, 45, 50), (0, 20, 0)),),
        margin=12,
        diaphragm=1,
        place=6,
        wave=6,
        ripple=40,
    ),
    Shape(
        (("pancreas", 0),), (((5, -8, 22), (42, 9, 12), (0, -18, 12)), ((-25, -8, 8), (15, 12, 20), NO_TURN)), wave=3
    ),
]
STOMACH = Shape((("bowel wall", 0), ("stomach content", 4)),
                (((48, -25, 66), (36, 34, 46), (0, 30, 0)), ((18, -42, 28), (40, 22, 20), (0, 10, -15))),
                margin=16, diaphragm=-1, place=7, size=0.12, wave=3)  # fmt: skip
LIVER = Shape((("liver", 0),),
              (((-72, 0, 35), (72, 84, 88), (0, 8, 0)), ((-5, -48, 62), (72, 36, 42), (0, 12, 8))),
              carved=(((-10, 45, 20), (38, 38, 90), NO_TURN),), label=1, margin=14, diaphragm=-1, place=5, size=0.07,
              wave=3)  # fmt: skip
SPLEEN = Shape((("spleen", 0),), (((92, 36, 52), (40, 52, 58), (12, 0, 20)),),
               carved=(((50, -14, 62), (32, 46, 75), (0, 0, 20)),), label=4, margin=14, diaphragm=-1, place=6,
               size=0.12, wave=2.5)  # fmt: skip
GALLBLADDER = Shape((("bowel wall", 0), ("gallbladder", 2)), (((-42, -46, 2), (14, 15, 30), (25, -15, 0)),), place=8,
                    size=0.2, margin=14)  # fmt: skip
KIDNEY_BODY = ((-60, 40, 0), (25, 30, 54), (8, 8, -35))
HILUM = ((-44, 28, -2), (13, 9, 20), (0, 0, 35))
KIDNEY = {"place": 5, "size": 0.07, "margin": 18, "diaphragm": -1}
KIDNEYS = [
    *_both(Shape((("visceral fat", -6), ("cortex", 0)), (KIDNEY_BODY,), (HILUM,), **KIDNEY)),
    *_both(Shape((("medulla", 0),), ((KIDNEY_BODY[0], (17, 22, 44), KIDNEY_BODY[2]),), wave=6, ripple=15, **KIDNEY)),
    *_both(Shape((("renal sinus", 0),), (((-47, 31, -2), (10, 6, 17), (0, 0, 35)),), **KIDNEY)),
]
SPINE = [
    *_both(Shape((("muscle", 0),), (((-27, 72, 0), (25, 18, TALL), NO_TURN),))),
    Shape((("cortical bone", 0),), (((0, 82, 0), (5, 14, TALL), NO_TURN),), place=1),
    Shape((("cortical bone", 0), ("bone", 2)), (((0, 40, 0), (23, 18, TALL), NO_TURN),), place=1, wave=1),
    Shape(
        (("cortical bone", 0), ("cerebrospinal fluid", 5)), (((0, 65, 0), (15, 13, TALL), NO_TURN),), place=1, wave=1
    ),
    Shape((("cord", 0),), (((0, 65, 130), (5, 4, 130), NO_TURN),), place=1, wave=0.5),
    Shape((("vessel wall", 0), ("blood", 2)), (((9, 14, 0), (10, 10, TALL), NO_TURN),), place=4),  # aorta
    Shape((("vessel wall", 0), ("blood", 1.5)), (((-20, 14, 0), (12, 9, TALL), NO_TURN),), place=4, size=0.2),  # cava
]


@dataclass(frozen=True)
class Patient:
    """One anatomy: the trunk's measures in mm and its shapes in the order of painting."""

    shapes: tuple[Shape, ...]
    stretch: np.ndarray  # (3,) whole-body scale x, y, z
    sway: np.ndarray  # (3, 2, 3): per displaced axis and wave: amplitude mm, wave number 1/mm, phase
    trunk: tuple[float, float]  # half axes of the muscle wall's outside
    squareness: float  # 0: the trunk is an ellipse, 1: nearly a rectangle
    dome: tuple[float, float, float]  # height of the diaphragm at the middle, right above left, fall to the wall


def draw_patient(generator: np.random.Generator) -> Patient:
    """Choose one anatomy; everything else about it is a function of the result."""
    fat = float(np.clip(generator.gamma(3.0, 4.5), 5, 32))
    wall = float(generator.uniform(8, 12))
    trunk = [Shape((("subcutaneous fat", -fat), ("muscle", 0), ("visceral fat", wall)), margin=0, wave=2.5, ripple=50),
             Shape((("lung", 0),), margin=wall + 1, diaphragm=1)]  # fmt: skip
    shapes = [*trunk, *BEHIND_BOWEL, *_bowel(generator), STOMACH, SPLEEN, LIVER, *_liver_vessels(generator),
              GALLBLADDER, *_kidneys(), *SPINE, *_discs(generator)]  # fmt: skip
    groups: dict[str, tuple] = {}
    return Patient(
        shapes=tuple(_individual(shape, groups, generator) for shape in shapes),
        stretch=generator.normal(1.0, (0.04, 0.04, 0.05)).clip(0.9, 1.1),
        sway=np.stack([generator.uniform(1.0, 4.0, (3, 2)), 2 * np.pi / generator.uniform(150, 300, (3, 2)),
                       generator.uniform(0, 2 * np.pi, (3, 2))], axis=-1),
        trunk=(float(generator.normal(138, 5)), float(generator.normal(93, 4))),
        squareness=float(generator.uniform(0.2, 0.6)),
        dome=(float(generator.normal(108, 7)), float(generator.uniform(3, 12)), float(generator.uniform(60, 110))),
    )  # fmt: skip


def _individual(shape: Shape, groups: dict[str, tuple], generator: np.random.Generator) -> Shape:
    """The shape in one patient: moved, scaled, turned a little, its surface undulating."""
    drawn = generator.normal(0, 1, (3, 3)).clip(-2, 2)
    drawn = groups.setdefault(shape.group, drawn) if shape.group else drawn
    move, scale, turn = shape.place * drawn[0], 1 + shape.size * drawn[1], 4 * drawn[2]

    def varied(parts):
        return tuple((np.add(centre, move), np.multiply(radii, scale),
                      Rotation.from_euler("xyz", np.add(angles, turn if max(radii) < TALL else 0), True).as_matrix())
                     for centre, radii, angles in parts)  # fmt: skip

    waves = np.concatenate([generator.normal(0, 3.6 / shape.ripple, (3, 3)), generator.uniform(0, 6.3, (3, 1))], 1)
    return replace(shape, parts=varied(shape.parts), carved=varied(shape.carved), waves=waves,
                   shade=float(generator.normal()))  # fmt: skip


def _tube(points: np.ndarray, radius: float, **values) -> Shape:
    """A sausage through `points` `(K, 3)`, mm."""
    parts = []
    for start, end in pairwise(points):
        step = end - start
        length = np.linalg.norm(step)
        # the ellipsoid's x axis along the step: turn about y lifts it, turn about z points it
        angles = (0.0, -np.degrees(np.arcsin(step[2] / length)), np.degrees(np.arctan2(step[1], step[0])))
        parts.append(((start + end) / 2, (0.5 * length + 0.6 * radius, radius, radius), angles))
    return Shape(parts=tuple(parts), **values)


def _bowel(generator: np.random.Generator) -> Iterator[Shape]:
    """Vessels of the mesentery, colon as a frame, small bowel as rows of loops in front of the spine."""
    for start in generator.uniform((-95, -65, -120), (95, 25, 60), (40, 3)):
        yield _tube(start + np.outer((0, 1, 2), generator.normal(0, 13, 3)) + generator.normal(0, 4, (3, 3)),
                    generator.uniform(1.2, 2.5), layers=(("vein", 0),), margin=14, diaphragm=-1)  # fmt: skip
    for path in COLON:
        yield _tube(generator.normal(path, 5), generator.uniform(15, 21), margin=14, diaphragm=-1, place=5, wave=3,
                    layers=(("bowel wall", 0), ("colon content", 3)))  # fmt: skip
    for z in (-112, -88, -64, -40, -16, 8):
        for y in (-58, -34, -10):
            x = np.arange(-70, 71, 28) + generator.normal(0, 5)
            points = np.stack([x, np.full(x.shape, y), np.full(x.shape, z)], 1) + generator.normal(0, 7, (len(x), 3))
            start = generator.integers(0, 3)
            yield _tube(points[start : start + generator.integers(3, 7)], generator.uniform(9, 14), wave=2, margin=14,
                        layers=(("bowel wall", 0), ("bowel content", 2.5)), place=3, diaphragm=-1)  # fmt: skip


def _liver_vessels(generator: np.random.Generator) -> Iterator[Shape]:
    """Portal and hepatic veins: straight pieces that fork and thin out."""
    ends = [(np.array(root, float), np.array(way, float), 4.5) for root, way in
            [((-25, -5, 30), (-1, -0.3, 0.3)), ((-25, -5, 30), (0.2, -1, 0.6)), ((-20, 5, 95), (-1, -0.2, -0.6)),
             ((-20, 5, 95), (-0.2, -1, -0.5)), ((-20, 5, 95), (-1, 0.6, -0.3))]]  # fmt: skip
    while ends:
        start, way, radius = ends.pop()
        way = way / np.linalg.norm(way)
        end = start + way * generator.uniform(22, 34)
        yield _tube(np.stack([start, end]), radius, layers=(("vein", 0),), within=1, place=0, size=0, wave=0.5)
        if radius > 1.6:
            ends += [(end, way + generator.normal(0, 0.5, 3), radius * 0.72) for _ in range(2)]


def _kidneys() -> Iterator[Shape]:
    """Cortex in its fat, medulla, sinus, first all on the right and then all on the left."""
    for label, side in ((2, KIDNEYS[0::2]), (3, KIDNEYS[1::2])):
        cortex, medulla, sinus = (replace(shape, group=LABELS[label]) for shape in side)
        yield from (replace(cortex, label=label), replace(medulla, within=label), sinus)


def _discs(generator: np.random.Generator) -> Iterator[Shape]:
    for z in np.arange(-160, 200, 34) + generator.uniform(-17, 17):
        yield Shape((("cortical bone", 0), ("disc", 5)), (((0, 40, z), (23, 18, 6), NO_TURN),), place=1)


def coverage(
    patient: Patient, points: np.ndarray, edge: float
) -> Iterator[tuple[Shape, str, float, np.ndarray, np.ndarray]]:
    """How far each tissue covers the points, in the order of painting.

    Args:
        patient: the anatomy.
        points: `(3, N)` positions x, y, z in mm, on any grid or none.
        edge: width in mm over which a border goes from 0 to 1 (about a pixel).

    Yields:
        shape, tissue, depth of the layer, indices `(M,)` of the points touched, their coverage `(M,)` in 0..1.
    """
    points = _into_standard_body(patient, points)
    wall, above = _trunk(patient, points)
    # neighbours in memory are mostly neighbours in space: whole runs of points are tested against a shape's box
    runs = np.arange(0, points.shape[1], RUN)
    low, high = (extreme.reduceat(points, runs, axis=1) for extreme in (np.minimum, np.maximum))
    for shape in patient.shapes:
        lower, upper = (corner[:, None] for corner in shape.box())
        hit = runs[((high > lower) & (low < upper)).all(0)]
        if not hit.size:
            continue
        index = (hit[:, None] + np.arange(RUN)).ravel()
        index = index[: np.searchsorted(index, points.shape[1])]
        distance = _distance(shape, points[:, index], wall[index], above[index])
        for tissue, depth in shape.layers:
            cover = np.clip(0.5 - (distance + depth) / edge, 0, 1)
            touched = np.flatnonzero(cover)
            yield shape, tissue, depth, index[touched], cover[touched]


def _into_standard_body(patient: Patient, points: np.ndarray) -> np.ndarray:
    """Undo the patient's stretch and sway (each axis swings along the two others, which never folds space)."""
    points = points / patient.stretch[:, None].astype(np.float32)
    moved = points.copy()
    for axis in range(3):
        for other, (height, number, phase) in zip(((axis + 1) % 3, (axis + 2) % 3), patient.sway[axis], strict=True):
            moved[axis] += np.float32(height) * np.sin(np.float32(number) * points[other] + np.float32(phase))
    return moved


def _trunk(patient: Patient, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signed distance in mm to the outside of the muscle wall (negative inside) and height above the diaphragm."""
    x, y, z = points
    across, deep = x / patient.trunk[0], y / patient.trunk[1]
    across, deep = across**2, deep**2
    ratio = (1 - patient.squareness) * np.sqrt(across + deep)
    ratio += patient.squareness * np.sqrt(np.sqrt(across**2 + deep**2))
    wall = np.hypot(x, y) * (1 - 1 / np.maximum(ratio, 0.05))
    wall += 7 * np.exp(-((x / 15) ** 2)) * np.clip(y / patient.trunk[1], 0, 1)  # the groove along the spine
    top, right, fall = patient.dome
    above = z - (
        top - right * np.tanh(x / 40) - fall * (1 + 0.5 * np.tanh(y / 60)) * np.minimum(1.17 * ratio**2, 1.3) ** 4
    )
    return wall, above


def _distance(shape: Shape, points: np.ndarray, wall: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Signed distance in mm `(M,)` to the shape's surface, negative inside; exact enough near the surface."""
    distance = np.full(points.shape[1], np.inf if shape.parts else -np.inf, np.float32)
    for part in shape.parts:
        other = _ellipsoid(part, points)
        blend = np.maximum(6 - np.abs(distance - other), 0)
        distance = np.minimum(distance, other) - blend**2 / 24
    for part in shape.carved:
        distance = np.maximum(distance, -_ellipsoid(part, points))
    if shape.margin is not None:
        distance = np.maximum(distance, wall + shape.margin)
    if shape.diaphragm:
        distance = np.maximum(distance, -shape.diaphragm * above + 3)
    for *vector, phase in shape.waves.astype(np.float32):
        distance += shape.wave / np.float32(1.7) * np.sin(np.array(vector) @ points + phase)
    return distance


def _ellipsoid(part, points: np.ndarray) -> np.ndarray:
    """Approximate signed distance in mm `(M,)`: first order around the surface."""
    centre, radii, turn = (np.asarray(values, np.float32) for values in part)
    local, radii = turn.T @ (points - centre[:, None]), radii[:, None]
    unit = local / radii
    ratio = np.sqrt((unit**2).sum(0)) + 1e-6
    return ratio * (ratio - 1) / (np.sqrt(((unit / radii) ** 2).sum(0)) + 1e-6)


def paint(patient: Patient, points: np.ndarray, edge: float,
          values: Mapping[str, tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Mixed value of the tissues and soft labels at points.

    Args:
        patient, points, edge: as `coverage` takes them.
        values: tissue -> value, spread between its pieces (MR signal, Hounsfield units, ...); "air" fills the rest.

    Returns:
        values `(N,)`, coverage of background and each label `(1 + 4, N)`, float32; the latter sums to one.
    """
    signal = np.full(points.shape[1], values["air"][0], np.float32)
    labels = np.zeros((1 + len(LABELS), points.shape[1]), np.float32)
    labels[0] = 1
    for shape, tissue, depth, index, cover in coverage(patient, points, edge):
        if shape.within is not None:
            cover = cover * labels[shape.within, index]
        else:
            labels[:, index] *= 1 - cover
            labels[shape.label if depth >= 0 else 0, index] += cover
        value, spread = values[tissue]
        signal[index] += cover * (np.float32(value + spread * shape.shade) - signal[index])
    return signal, labels


@dataclass(frozen=True)
class Scan:
    """Image int16 and label uint8, both `(D, H, W)`, on one grid."""

    image: np.ndarray
    label: np.ndarray
    geometry: Geometry


def phantom_scan(seed: int, number: int, size: int = 256, slices: int = 32) -> Scan:
    """Scan `number` of the data set `seed`: always the same one, whatever else is computed.

    Args:
        seed: the data set, 0 or more.
        number: the patient, 0 or more.
        size: rows and columns; `slices`: slices. The field of view stays, so fewer voxels are larger voxels.
    """
    anatomy, acquisition = np.random.default_rng(np.random.SeedSequence([seed, number])).spawn(2)
    patient = draw_patient(anatomy)
    geometry = _position(size, slices, acquisition)
    values = {tissue: (max(mean + between * acquisition.normal(), 0.0), within)
              for tissue, (mean, between, within) in MR_CONTRAST.items()}  # fmt: skip
    signal = np.empty((slices, size, size), np.float32)
    label = np.empty((slices, size, size), np.uint8)
    for index in range(slices):
        points = _slice_points(geometry, index, size)
        painted, covered = paint(patient, points, geometry.spacing[0], values)
        signal[index] = painted.reshape(SUBSLICES, size, size).mean(0)
        label[index] = covered.reshape(-1, SUBSLICES, size, size).mean(1).argmax(0)
    return Scan(_acquire(signal, geometry.spacing[::-1], acquisition), label, geometry)


def _position(size: int, slices: int, generator: np.random.Generator) -> Geometry:
    """A grid laid over the trunk not quite centred; rows run from back to front as in CHAOST2."""
    spacing = np.array(FIELD_OF_VIEW) / (size, size, slices)
    centre = np.array([0.0, 0.0, 28.0]) + generator.normal(0, (4, 4, 8)).clip(-12, 12)
    origin = centre + np.array([-1, 1, -1]) * (np.array(FIELD_OF_VIEW) - spacing) / 2
    return Geometry(tuple(spacing.tolist()), tuple(origin.round(3).tolist()), (1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))


def _slice_points(geometry: Geometry, index: int, size: int) -> np.ndarray:
    """Positions `(3, SUBSLICES * size * size)` in mm of one thick slice's thin ones."""
    pixels = np.arange(size)
    thin = (np.arange(SUBSLICES) + 0.5) / SUBSLICES - 0.5
    x = geometry.origin[0] + geometry.spacing[0] * pixels
    y = geometry.origin[1] - geometry.spacing[1] * pixels
    z = geometry.origin[2] + geometry.spacing[2] * (index + thin)
    grid = np.meshgrid(z, y, x, indexing="ij")
    return np.stack([axis.ravel() for axis in grid[::-1]]).astype(np.float32)


def _acquire(signal: np.ndarray, spacing: tuple[float, ...], generator: np.random.Generator) -> np.ndarray:
    """What the scanner makes of the signal `(D, H, W)`: texture, blur, coil, noise; spacing is z, y, x."""
    texture = sum(height * _smooth_noise(signal.shape, millimetres, spacing, generator)
                  for height, millimetres in ((0.09, 2.5), (0.09, 9.0)))  # fmt: skip
    signal = gaussian_filter(signal * (1 + texture), (2.0 / spacing[0], 0.9 / spacing[1], 0.9 / spacing[2]))
    waves = [np.cos(np.pi * np.outer(np.arange(4), (np.arange(n) + 0.5) / n)) for n in signal.shape]
    order = 1.0 + np.indices((4, 4, 4)).sum(0)
    coil = np.einsum("ijk,iz,jy,kx->zyx", generator.normal(0, 0.3 / order**1.5), *waves, optimize=True)
    signal = signal * np.exp(coil).astype(np.float32)
    noise = generator.uniform(0.015, 0.04)
    real, imaginary = generator.standard_normal((2, *signal.shape), np.float32) * np.float32(noise)
    image = np.hypot(signal + real, imaginary) * generator.uniform(600, 1000)
    return np.minimum(image, np.percentile(image, 99.5)).astype(np.int16)


def _smooth_noise(shape, millimetres: float, spacing, generator: np.random.Generator) -> np.ndarray:
    """Correlated noise `(D, H, W)` of unit spread."""
    noise = gaussian_filter(generator.standard_normal(shape, np.float32), [millimetres / step for step in spacing])
    return noise / noise.std()


def write_scans(folder: str | Path, scans: int, seed: int, size: int, slices: int, jobs: int) -> int:
    """Write the missing ones of scans 1..`scans` below `folder`; return how many that were.

    Raises:
        UserError: the folder holds a phantom of other parameters, or cannot be written.
    """
    folder = Path(folder)
    _claim(folder, {"seed": seed, "size": size, "slices": slices})
    missing = [number for number in range(1, scans + 1) if not all(path.is_file() for path in _paths(folder, number))]
    work = Parallel(n_jobs=jobs, return_as="generator_unordered")(
        delayed(_write_scan)(folder, seed, number, size, slices) for number in missing
    )
    for _ in tqdm(work, total=len(missing), desc="phantom", unit="scan", disable=not missing):
        pass
    return len(missing)


def _claim(folder: Path, parameters: dict[str, int]) -> None:
    """Note the parameters in a new folder; refuse a folder made with others."""
    manifest = folder / MANIFEST
    if manifest.is_file():
        try:
            found = json.loads(manifest.read_text())
        except ValueError as error:
            raise UserError(f"{manifest}: not JSON ({error}); remove {folder} and generate it again") from error
        if found != parameters:
            raise UserError(f"{manifest}: the scans here were made with {found}, not {parameters}; "
                            "choose another folder, or remove this one")  # fmt: skip
    elif any(folder.glob(f"{FOLDER}/*.nii.gz")):
        raise UserError(f"{folder}: holds scans but no {MANIFEST} that says how they were made; "
                        "choose another folder, or remove this one")  # fmt: skip
    else:
        with whole_file(manifest) as temporary:
            temporary.write_text(json.dumps(parameters) + "\n")


def _paths(folder: Path, number: int) -> tuple[Path, Path]:
    return folder / FOLDER / f"image_{number}.nii.gz", folder / FOLDER / f"label_{number}.nii.gz"


def _write_scan(folder: Path, seed: int, number: int, size: int, slices: int) -> None:
    scan = phantom_scan(seed, number, size, slices)
    for path, array in zip(_paths(folder, number), (scan.image, scan.label), strict=True):
        write_volume(path, array, scan.geometry)


def _at_least(least: int):
    def whole_number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        return int(text)

    return whole_number


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m data.phantom",
        description="Generate synthetic abdominal MR scans with labels (1 liver, 2 right kidney, 3 left kidney, "
        f"4 spleen): OUT/{FOLDER}/image_N.nii.gz and label_N.nii.gz, N = 1, 2, ... "
        "Scan N depends on seed, size and slices only; scans already there are kept, so an interrupted run goes on.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("out", metavar="OUT", nargs="?", default="data/PHANTOM", type=Path, help="folder to write to")
    parser.add_argument("--scans", type=_at_least(1), default=12, help="number of patients")
    parser.add_argument("--seed", type=_at_least(0), default=1, help="another seed, other patients")
    parser.add_argument("--size", type=_at_least(16), default=256, help="rows and columns over 320 x 320 mm")
    parser.add_argument("--slices", type=_at_least(4), default=32, help="slices over 246.4 mm")
    parser.add_argument("--jobs", type=int, default=-1, help="scans computed at once; -1: one a core")
    options = parser.parse_args(arguments)
    try:
        written = write_scans(options.out, options.scans, options.seed, options.size, options.slices, options.jobs)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {written} scan(s) written, {options.scans - written} were there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
