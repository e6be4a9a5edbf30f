"""Compiles the Cython extensions; everything else stands in pyproject.toml."""

import sys

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

# Exactness before speed: supervoxel labels depend on the last bit of an edge cost, so no fast-math, no fused
# multiply-add [supervoxels 2], and nothing that only this machine's processor can run.
FLAGS = ["/O2", "/std:c++17"] if sys.platform == "win32" else ["-O3", "-std=c++17", "-ffp-contract=off"]


def extension(name, depends=()):
    return Extension(
        f"supervoxels.{name}",
        [f"supervoxels/{name}.pyx"],
        include_dirs=[numpy.get_include(), "supervoxels/src"],
        depends=list(depends),
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
        extra_compile_args=FLAGS,
        language="c++",
    )


HEADERS = [f"supervoxels/src/{name}.hpp" for name in ("grid", "edges", "components", "felzenszwalb")]

setup(ext_modules=cythonize([extension("_felzenszwalb", HEADERS), extension("_oracle")], language_level=3))
