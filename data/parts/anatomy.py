"""A synthetic abdomen: drawing a patient, and asking which tissue lies at any physical point.

Millimetres in the patient's frame: x to the left, y to the back, z to the head (DICOM's LPS); the origin lies between
the kidneys, in the middle of the trunk. Every solid part is an ellipsoid or a smooth union of some, with an undulating
surface; later shapes cover earlier ones, so organs cannot overlap. What a tissue looks like is not known here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from scipy.spatial.transform import Rotation

from util.volume import Geometry

LABELS = {1: "liver", 2: "right kidney", 3: "left kidney", 4: "spleen"}
TALL = 500.0  # a radius that passes through the whole field of view
RUN = 32  # points tested together, see `coverage`


@dataclass(frozen=True)
class Ellipsoid:
    """Centre and radii in mm `(x, y, z)`, turned by degrees about x, y, z."""

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    degrees: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @cached_property
    def turn(self) -> np.ndarray:
        """Rotation matrix `(3, 3)`; its columns are the ellipsoid's axes."""
        return Rotation.from_euler("xyz", self.degrees, degrees=True).as_matrix().astype(np.float32)

    @property
    def reach(self) -> np.ndarray:
        """Half the extent of the bounding box `(3,)`, mm."""
        return np.sqrt(self.turn**2 @ np.square(self.radii))

    def mirrored(self) -> "Ellipsoid":
        """The same on the other side of the body."""
        (x, y, z), (a, b, c) = self.centre, self.degrees
        return replace(self, centre=(-x, y, z), degrees=(a, -b, -c))

    def varied(self, move: np.ndarray, scale: np.ndarray, degrees: np.ndarray) -> "Ellipsoid":
        """Moved by mm, scaled and turned; what passes through the whole body stays upright."""
        degrees = degrees * (max(self.radii) < TALL)
        return Ellipsoid(np.add(self.centre, move), np.multiply(self.radii, scale), np.add(self.degrees, degrees))

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Signed distance `(M,)` in mm of points `(3, M)`, negative inside; right to first order at the surface."""
        radii = np.asarray(self.radii, np.float32)[:, None]
        unit = _product(self.turn.T, points - np.asarray(self.centre, np.float32)[:, None]) / radii
        ratio = np.sqrt((unit**2).sum(0)) + 1e-6
        return ratio * (ratio - 1) / (np.sqrt(((unit / radii) ** 2).sum(0)) + 1e-6)


def _product(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """`matrix @ points`, `(..., 3)` and `(3, M)`, without BLAS, whose rounding may depend on the number of threads."""
    return sum(matrix[..., axis, None] * points[axis] for axis in range(3))


@dataclass(frozen=True)
class Shape:
    """One piece of anatomy: a row of the tables below and, once `individual` varied it, a piece of one patient.

    Attributes:
        layers: tissues from the surface inwards as an onion's, each with its depth in mm (negative: around the shape).
        parts: ellipsoids, joined smoothly; none means everywhere.
        carved: ellipsoids taken away.
        label: class of the voxels covered, 0 for none.
        within: the label that this lies in and leaves as it is (a vessel of the liver); None for everything else.
        margin: mm kept from the outside of the trunk's muscles; None for no bound.
        diaphragm: -1 stays below it, +1 above, 0 does not care.
        place, size: spread between patients of the position (mm) and the radii (relative).
        wave, ripple: height and typical length of the surface's undulation, mm.
        group: shapes of one group move, grow and turn together.
        waves, shade: drawn for a patient: wave vectors and phase `(K, 4)`; brightness among pieces of its tissue, in
            standard deviations.
    """

    layers: tuple[tuple[str, float], ...]
    parts: tuple[Ellipsoid, ...] = ()
    carved: tuple[Ellipsoid, ...] = ()
    label: int = 0
    within: int | None = None
    margin: float | None = None
    diaphragm: int = 0
    place: float = 3.0
    size: float = 0.06
    wave: float = 1.5
    ripple: float = 70.0
    group: str = ""
    waves: np.ndarray | None = None
    shade: float = 0.0

    @cached_property
    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper corner `(3, 1)`, mm, of a box that holds the shape."""
        if not self.parts:
            return np.full((3, 1), -np.inf), np.full((3, 1), np.inf)
        beyond = 4 + 2 * self.wave + max(0.0, -self.layers[0][1])
        return (np.min([part.centre - part.reach for part in self.parts], 0)[:, None] - beyond,
                np.max([part.centre + part.reach for part in self.parts], 0)[:, None] + beyond)  # fmt: skip


def _both(shape: Shape) -> tuple[Shape, Shape]:
    """The shape on the right side (x < 0, as given) and its mirror image on the left."""
    other = {name: tuple(part.mirrored() for part in getattr(shape, name)) for name in ("parts", "carved")}
    return shape, replace(shape, **other)


def _column(x: float, y: float, across: float, deep: float) -> tuple[Ellipsoid]:
    return (Ellipsoid((x, y, 0), (across, deep, TALL)),)


# fmt: off
# An average adult. Painted from the back of the list's order to the front: `draw_patient` has the order.
PSOAS = _both(Shape((("muscle", 0),), (Ellipsoid((-36, 36, -100), (18, 19, 105)),)))
HEART = Shape((("heart", 0), ("blood", 14)), (Ellipsoid((25, -25, 150), (55, 45, 50), (0, 20, 0)),),
              margin=12, diaphragm=1, place=6, wave=5)
PANCREAS = Shape((("pancreas", 0),), (Ellipsoid((5, -8, 22), (42, 9, 12), (0, -18, 12)),
                                      Ellipsoid((-25, -8, 8), (15, 12, 20))), wave=3)
COLON = (  # ascending, two halves of the transverse, the bend at the spleen, descending
    ((-92, 0, -130), (-95, 2, -80), (-88, -8, -42)), ((-86, -30, -40), (-45, -56, -50), (0, -62, -55)),
    ((0, -62, -55), (45, -56, -35), (80, -36, 5)), ((80, -36, 5), (92, -25, 50), (100, 0, 35)),
    ((98, 8, 15), (100, 20, -50), (98, 14, -130)),
)
STOMACH = Shape((("bowel wall", 0), ("stomach content", 4)),
                (Ellipsoid((48, -25, 66), (36, 34, 46), (0, 30, 0)),
                 Ellipsoid((18, -42, 28), (40, 22, 20), (0, 10, -15))),
                margin=16, diaphragm=-1, place=7, size=0.12, wave=3)
SPLEEN = Shape((("spleen", 0),), (Ellipsoid((90, 34, 52), (40, 52, 58), (12, 0, 20)),),
               (Ellipsoid((50, -14, 62), (32, 46, 75), (0, 0, 20)), Ellipsoid((56, 42, 15), (28, 36, 62))),
               label=4, margin=13, diaphragm=-1, place=4, size=0.1, wave=2.5)
LIVER = Shape((("liver", 0),),
              (Ellipsoid((-72, 0, 35), (72, 84, 88), (0, 8, 0)), Ellipsoid((-5, -48, 62), (72, 36, 42), (0, 12, 8))),
              (Ellipsoid((-10, 45, 20), (38, 38, 90)), Ellipsoid((-62, 66, -20), (45, 24, 70))),
              label=1, margin=14, diaphragm=-1, place=5, size=0.09, wave=3.5)
LIVER_VEINS = (  # where they enter and which way they go: two branches of the portal vein, three hepatic veins
    ((-25, -5, 30), (-1, -0.3, 0.3)), ((-25, -5, 30), (0.2, -1, 0.6)), ((-20, 5, 95), (-1, -0.2, -0.6)),
    ((-20, 5, 95), (-0.2, -1, -0.5)), ((-20, 5, 95), (-1, 0.6, -0.3)),
)
GALLBLADDER = Shape((("bowel wall", 0), ("gallbladder", 2)), (Ellipsoid((-42, -46, 2), (14, 15, 30), (25, -15, 0)),),
                    place=8, size=0.2, margin=14)
_KIDNEY = {"place": 5, "size": 0.07, "margin": 17, "diaphragm": -1}
KIDNEYS = (
    _both(Shape((("visceral fat", -5), ("cortex", 0)), (Ellipsoid((-60, 38, 0), (25, 30, 54), (8, 8, -35)),),
                (Ellipsoid((-44, 26, -2), (13, 9, 20), (0, 0, 35)),), wave=2, **_KIDNEY)),
    _both(Shape((("medulla", 0),), (Ellipsoid((-60, 38, 0), (17, 22, 44), (8, 8, -35)),), wave=6, ripple=15,
                **_KIDNEY)),
    _both(Shape((("renal sinus", 0),), (Ellipsoid((-47, 29, -2), (10, 6, 17), (0, 0, 35)),), **_KIDNEY)),
)
SPINE = (
    *_both(Shape((("muscle", 0),), _column(-25, 74, 23, 17))),
    Shape((("cortical bone", 0),), _column(0, 82, 5, 14), place=1),  # spinous processes
    Shape((("cortical bone", 0), ("bone", 2)), _column(0, 40, 23, 18), place=1, wave=1),
    Shape((("cortical bone", 0), ("cerebrospinal fluid", 5)), _column(0, 65, 15, 13), place=1, wave=1),
    Shape((("cord", 0),), (Ellipsoid((0, 65, 130), (5, 4, 130)),), place=1, wave=0.5),
    Shape((("vessel wall", 0), ("blood", 2)), _column(9, 14, 10, 10), place=4),  # aorta
    Shape((("vessel wall", 0), ("blood", 1.5)), _column(-20, 14, 12, 9), place=4, size=0.2),  # vena cava
)
# fmt: on


@dataclass(frozen=True)
class Patient:
    """One anatomy: the trunk's measures in mm and its shapes in the order of painting."""

    shapes: tuple[Shape, ...]
    fat: float  # beneath the skin, mm
    stretch: np.ndarray  # (3,) whole-body scale x, y, z
    sway: np.ndarray  # (3, 2, 3): per displaced axis and wave: amplitude mm, wave number 1/mm, phase
    trunk: tuple[float, float]  # half axes of the muscle wall's outside
    squareness: float  # 0: the trunk is an ellipse, 1: nearly a rectangle
    dome: tuple[float, float, float]  # height of the diaphragm at the middle, right above left, fall to the wall


def draw_patient(generator: np.random.Generator) -> Patient:
    """Choose one anatomy; everything else about it is a function of the result."""
    fat = float(np.clip(generator.gamma(3.0, 4.5), 5, 32))
    wall = float(generator.uniform(8, 12))
    trunk = (Shape((("subcutaneous fat", -fat), ("muscle", 0), ("visceral fat", wall)), margin=0, wave=2),
             Shape((("lung", 0),), margin=wall + 1, diaphragm=1))  # fmt: skip
    lung_vessels = _vessels((-90, -40, 70), (90, 60, 170), 40, generator, diaphragm=1)
    shapes = (*trunk, *lung_vessels, HEART, *PSOAS, PANCREAS, *_bowel(generator), STOMACH, SPLEEN, LIVER,
              *_liver_vessels(generator), GALLBLADDER, *_kidneys(2 + fat / 4), *SPINE, *_discs(generator))  # fmt: skip
    groups: dict[str, np.ndarray] = {}
    return Patient(
        shapes=tuple(individual(shape, groups, generator) for shape in shapes),
        fat=fat,
        stretch=generator.normal(1.0, 0.05, 3).clip(0.9, 1.1),
        sway=np.stack([generator.uniform(1.0, 4.0, (3, 2)), 2 * np.pi / generator.uniform(150, 300, (3, 2)),
                       generator.uniform(0, 2 * np.pi, (3, 2))], axis=-1),
        trunk=(float(generator.uniform(134, 140)), float(generator.uniform(91, 96))),
        squareness=float(generator.uniform(0.2, 0.6)),
        dome=(float(generator.uniform(100, 118)), float(generator.uniform(3, 12)), float(generator.uniform(60, 95))),
    )  # fmt: skip


def individual(shape: Shape, groups: dict[str, np.ndarray], generator: np.random.Generator) -> Shape:
    """The shape in one patient: moved, scaled, turned a little, its surface undulating."""
    drawn = generator.normal(0, 1, (3, 3)).clip(-2, 2)
    drawn = groups.setdefault(shape.group, drawn) if shape.group else drawn
    change = shape.place * drawn[0], 1 + shape.size * drawn[1], 4 * drawn[2]
    waves = np.concatenate([generator.normal(0, 3.6 / shape.ripple, (3, 3)), generator.uniform(0, 6.3, (3, 1))], 1)
    return replace(
        shape,
        parts=tuple(part.varied(*change) for part in shape.parts),
        carved=tuple(part.varied(*change) for part in shape.carved),
        waves=waves.astype(np.float32),
        shade=float(generator.normal()),
    )


def _tube(points: np.ndarray, radius: float, **values) -> Shape:
    """A sausage through `points` `(K, 3)`, mm."""
    parts = []
    for start, end in pairwise(points):
        step = end - start
        length = float(np.linalg.norm(step))
        # the ellipsoid's x axis along the step: the turn about y lifts it, the turn about z points it
        degrees = (0.0, -np.degrees(np.arcsin(step[2] / length)), np.degrees(np.arctan2(step[1], step[0])))
        parts.append(Ellipsoid((start + end) / 2, (0.5 * length + 0.6 * radius, radius, radius), degrees))
    return Shape(parts=tuple(parts), **values)


def _vessels(low, high, count: int, generator: np.random.Generator, **values) -> Iterator[Shape]:
    """Thin crooked vessels that start anywhere in a box."""
    for start in generator.uniform(low, high, (count, 3)):
        points = start + np.outer((0, 1, 2), generator.normal(0, 13, 3)) + generator.normal(0, 4, (3, 3))
        yield _tube(points, generator.uniform(1.2, 2.5), layers=(("vein", 0),), margin=14, **values)


def _bowel(generator: np.random.Generator) -> Iterator[Shape]:
    """Vessels of the mesentery, colon as a frame, small bowel as rows of loops in front of the spine."""
    yield from _vessels((-95, -65, -120), (95, 25, 60), 40, generator, diaphragm=-1)
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
    ends = [(np.array(root, float), np.array(way, float), 4.5) for root, way in LIVER_VEINS]
    while ends:
        start, way, radius = ends.pop()
        way = way / np.linalg.norm(way)
        end = start + way * generator.uniform(22, 34)
        yield _tube(np.stack([start, end]), radius, layers=(("vein", 0),), within=1, place=0, size=0, wave=0.5)
        if radius > 1.6:
            ends += [(end, way + generator.normal(0, 0.5, 3), radius * 0.72) for _ in range(2)]


def _kidneys(capsule: float) -> Iterator[Shape]:
    """Cortex in `capsule` mm of fat, medulla, sinus; first all on the right and then all on the left."""
    for label, side in zip((2, 3), zip(*KIDNEYS, strict=True), strict=True):
        cortex, medulla, sinus = (replace(shape, group=LABELS[label]) for shape in side)
        yield replace(cortex, label=label, layers=(("visceral fat", -capsule), ("cortex", 0)))
        yield replace(medulla, within=label)
        yield sinus


def _discs(generator: np.random.Generator) -> Iterator[Shape]:
    for z in np.arange(-160, 200, 34) + generator.uniform(-17, 17):
        yield Shape((("cortical bone", 0), ("disc", 5)), (Ellipsoid((0, 40, z), (23, 18, 6)),), place=1)


def coverage(
    patient: Patient, points: np.ndarray, edge: float
) -> Iterator[tuple[Shape, str, float, np.ndarray, np.ndarray]]:
    """How far each tissue covers the points, in the order of painting.

    Args:
        patient, points: the anatomy; positions `(3, N)`, x, y, z in mm, on any grid or none.
        edge: width in mm over which a border goes from 0 to 1 (about a pixel).

    Yields:
        shape, tissue, depth of the layer, indices `(M,)` of the points touched, their coverage `(M,)` in 0..1.
    """
    points = _into_standard_body(patient, points)
    wall, above = _trunk(patient, points)
    body = np.flatnonzero(wall < patient.fat + 8)  # the skin undulates; what lies outside is air
    points, wall, above = points[:, body], wall[body], above[body]
    # neighbours in memory are mostly neighbours in space: whole runs of points are tested against a shape's box
    runs = np.arange(0, points.shape[1], RUN)
    low, high = (extreme.reduceat(points, runs, axis=1) for extreme in (np.minimum, np.maximum))
    for shape in patient.shapes:
        lower, upper = shape.box
        hit = runs[((high > lower) & (low < upper)).all(0)]
        if not hit.size:
            continue
        index = (hit[:, None] + np.arange(RUN)).ravel()
        index = index[: np.searchsorted(index, points.shape[1])]
        distance = _distance(shape, points[:, index], wall[index], above[index])
        for tissue, depth in shape.layers:
            cover = np.clip(0.5 - (distance + depth) / edge, 0, 1)
            touched = np.flatnonzero(cover)
            yield shape, tissue, depth, body[index[touched]], cover[touched]


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
    sunk = fall * (1 + 0.5 * np.tanh(y / 60)) * np.minimum(1.17 * ratio**2, 1.3) ** 4
    return wall, z - (top - right * np.tanh(x / 40) - sunk)


def _distance(shape: Shape, points: np.ndarray, wall: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Signed distance in mm `(M,)` to the shape's surface, negative inside; exact enough near the surface."""
    distance = np.full(points.shape[1], np.inf if shape.parts else -np.inf, np.float32)
    for part in shape.parts:
        other = part.distance(points)
        blend = np.maximum(6 - np.abs(distance - other), 0)
        distance = np.minimum(distance, other) - blend**2 / 24
    for part in shape.carved:
        distance = np.maximum(distance, -part.distance(points))
    if shape.margin is not None:
        distance = np.maximum(distance, wall + shape.margin)
    if shape.diaphragm:
        distance = np.maximum(distance, -shape.diaphragm * above + 3)
    for *vector, phase in shape.waves:
        distance += shape.wave / np.float32(1.7) * np.sin(_product(np.array(vector), points) + phase)
    return distance


def paint(patient: Patient, points: np.ndarray, edge: float,
          values: Mapping[str, tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Mixed value of the tissues `(N,)` and soft labels `(1 + 4, N)`, whose sum is one, at the points of `coverage`.

    `values`: tissue -> value, spread between its pieces (MR signal, Hounsfield units, ...); "air" fills the rest.
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


def sample(patient: Patient, geometry: Geometry, shape: tuple[int, ...],
           values: Mapping[str, tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Signal (float32) and label (uint8: what covers most of a voxel), both `(D, H, W)`, on any grid.

    A thick slice is the mean of three thin ones: partial volume.
    """
    depth, height, width = shape
    axes = geometry.axes.T * geometry.spacing
    y, x = np.mgrid[:height, :width]
    signal, label = np.empty(shape, np.float32), np.empty(shape, np.uint8)
    for z in range(depth):
        points = [axes @ np.stack([x.ravel(), y.ravel(), np.full(x.size, z + thin)]) for thin in (-1 / 3, 0.0, 1 / 3)]
        points = np.concatenate(points, axis=1) + np.reshape(geometry.origin, (3, 1))
        painted, covered = paint(patient, points.astype(np.float32), geometry.spacing[0], values)
        signal[z] = painted.reshape(3, height, width).mean(0)
        label[z] = covered.reshape(-1, 3, height, width).mean(1).argmax(0)
    return signal, label
