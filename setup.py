"""Compiles the Cython extension; everything else stands in pyproject.toml."""

import sys

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

# Exactness before speed: supervoxel labels depend on the last bit of an edge cost, so no fast-math, no fused
# multiply-add (spec supervoxels 2).
FLAGS = ["/O2"] if sys.platform == "win32" else ["-O3", "-ffp-contract=off"]

setup(
    ext_modules=cythonize(
        [
            Extension(
                "supervoxels._felzenszwalb",
                ["supervoxels/_felzenszwalb.pyx"],
                include_dirs=[numpy.get_include()],
                define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
                extra_compile_args=FLAGS,
                language="c++",
            )
        ],
        language_level=3,
    )
)
