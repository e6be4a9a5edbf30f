"""A synthetic heart in a chest: left ventricle with its muscle, right ventricle around it, as in MS-CMRSeg."""

from dataclasses import replace

import numpy as np
from scipy.spatial.transform import Rotation

from data.parts.anatomy import Ellipsoid, Patient, Shape, draw_patient, individual

LABELS = {1: "LV myocardium", 2: "LV blood pool", 3: "right ventricle"}
CENTRE = np.array([28.0, -18.0, 135.0])  # mm, in the frame of data.parts.anatomy
APEX = np.array([0.66, -0.48, -0.58])  # where the long axis points: left, front, down
RIGHT = np.array([-0.72, -0.62, -0.31])  # from the left ventricle to the right one, across the long axis


def short_axis() -> np.ndarray:
    """Axes `(3, 3)` of short-axis slices: columns are image x, image y, and the normal from the apex to the base."""
    normal = -APEX / np.linalg.norm(APEX)
    across = -RIGHT - (-RIGHT @ normal) * normal
    across /= np.linalg.norm(across)
    return np.stack([across, np.cross(normal, across), normal], axis=1)


def draw_heart(generator: np.random.Generator) -> Patient:
    """Choose one chest with its heart; `data.parts.anatomy.coverage` and `paint` take it as any patient."""
    body = draw_patient(generator)
    axes = short_axis()
    # the ellipsoids' x, y, z axes are the slices' axes
    degrees = tuple(Rotation.from_matrix(axes).as_euler("xyz", degrees=True).tolist())
    right = CENTRE - 34 * axes[:, 0] + 6 * axes[:, 2]
    parts = (
        (3, (("muscle", -4.0), ("blood", 0.0)), right, (30, 36, 42)),
        (1, (("myocardium", 0.0),), CENTRE, (34, 34, 50)),
        (2, (("blood", 0.0),), CENTRE + 3 * axes[:, 2], (23, 23, 40)),
    )
    shapes, groups = [], {}
    for label, layers, centre, radii in parts:
        part = Ellipsoid(tuple(centre.tolist()), radii, degrees)
        shape = Shape(layers, (part,), label=label, place=4, size=0.06, wave=1, group="heart")
        shapes.append(individual(shape, groups, generator))
    return replace(body, shapes=(*body.shapes[:2], *shapes))  # trunk and lungs stay
