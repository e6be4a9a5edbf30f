"""Compiles the Cython extensions, and puts all packages under the one name `fsmis` when they are installed.

In the repository they lie side by side and run as they are. Installed, `import test` or `import data` must stay
somebody else's: the copies in a wheel import `fsmis.data`, and name commands as `python -m fsmis.data.check`.
Everything else stands in pyproject.toml.
"""

import ast
import re
import sys
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_py import build_py

# Exactness before speed: supervoxel labels depend on the last bit of an edge cost, so no fast-math, no fused
# multiply-add [supervoxels 2], and nothing that only this machine's processor can run.
FLAGS = ["/O2", "/std:c++17"] if sys.platform == "win32" else ["-O3", "-std=c++17", "-ffp-contract=off"]
PACKAGES = {"models", "dataloaders", "supervoxels", "data", "util"}
PROGRAMS = {"config", "training", "test", "predict"}


def extension(name, depends=()):
    return Extension(
        f"fsmis.supervoxels.{name}",
        [f"supervoxels/{name}.pyx"],
        include_dirs=[numpy.get_include(), "supervoxels/src"],
        depends=list(depends),
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
        extra_compile_args=FLAGS,
        language="c++",
    )


def under_one_name(source):
    """The text of a module with its imports, and the commands it names, below `fsmis`."""
    lines = source.split("\n")
    for node in ast.walk(ast.parse(source)):
        own = PACKAGES | PROGRAMS
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module.split(".")[0] in own:
            lines[node.lineno - 1] = re.sub(r"\bfrom +", "from fsmis.", lines[node.lineno - 1], count=1)
        elif isinstance(node, ast.Import) and {name.name.split(".")[0] for name in node.names} & own:
            name = node.names[0].name
            if len(node.names) > 1 or "." in name or node.names[0].asname:
                raise ValueError(f"{lines[node.lineno - 1]}: write from ... import, or one plain import")
            lines[node.lineno - 1] = lines[node.lineno - 1].replace(f"import {name}", f"from fsmis import {name}")
    text = re.sub(rf"python -m ({'|'.join(sorted(PACKAGES))})\b", r"python -m fsmis.\1", "\n".join(lines))
    return re.sub(rf"python ({'|'.join(sorted(PROGRAMS))})\.py\b", r"python -m fsmis.\1", text)


class UnderOneName(build_py):
    """Copies the modules into a wheel, each as `under_one_name` has it."""

    def run(self):
        if self.editable_mode:
            sys.exit("error: the repository runs as it is, without pip install -e; pip install . copies it")
        super().run()
        about = (
            f'"""{self.distribution.metadata.description}."""\n\n__version__ = "{self.distribution.get_version()}"\n'
        )
        Path(self.build_lib, "fsmis/__init__.py").write_text(about, encoding="utf-8")

    def find_package_modules(self, package, package_dir):
        return [found for found in super().find_package_modules(package, package_dir) if found[1] != "setup"]

    def build_module(self, module, module_file, package):
        built = super().build_module(module, module_file, package)
        source = Path(module_file).read_text(encoding="utf-8")
        Path(built[0]).write_text(under_one_name(source), encoding="utf-8")
        return built


HEADERS = [f"supervoxels/src/{name}.hpp" for name in ("grid", "edges", "components", "felzenszwalb")]

if __name__ == "__main__":
    setup(
        ext_modules=cythonize([extension("_felzenszwalb", HEADERS), extension("_oracle")], language_level=3),
        cmdclass={"build_py": UnderOneName},
    )
