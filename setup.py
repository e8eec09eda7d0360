"""Builds the kernels: every csrc/NAME.pyx becomes clover._native.NAME.  Metadata lives in pyproject.toml.

A module of `clover` with a .pxd beside it is compiled as well, as it stands: the .pxd says which of its classes are C
structs and which of its methods C functions, the source says what they do, and runs without the compiler too.

CLOVER_BUILD chooses the build:
    release    (default) -O3, no checks: what is shipped
    checked    bounds and initialisation checks in Cython, -O1 -g
    coverage   Cython line tracing, for line coverage of the kernels
CLOVER_SANITIZE=1 adds the address and undefined-behaviour sanitizers to any of them, and has the modules of `clover`
compiled as well; `make sanitize` builds and runs that.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, find_namespace_packages, find_packages, setup

HERE = Path(__file__).resolve().parent
os.chdir(HERE)  # the paths below are relative, as an sdist needs them

MODE = os.environ.get("CLOVER_BUILD") or "release"
SANITIZE = os.environ.get("CLOVER_SANITIZE") == "1"
CHECKED = MODE != "release"
if MODE not in ("release", "checked", "coverage"):
    sys.exit(f"CLOVER_BUILD={MODE!r} is not one of release, checked, coverage")
if not sys.platform.startswith("linux"):
    sys.exit("Clover runs on Linux only: its kernels and workers use memfd, eventfd and pidfd.")

WORKERS = min(len(os.sched_getaffinity(0)), 8)

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": CHECKED,
    "wraparound": False,
    "initializedcheck": CHECKED,
    "cdivision": not CHECKED,
    "embedsignature": True,
    "auto_pickle": False,
    "emit_code_comments": False,
    "linetrace": MODE == "coverage",
    "show_performance_hints": False,
}
COMPILE = ["-O1", "-g", "-UNDEBUG", "-ffp-contract=off"] if CHECKED else ["-O3", "-g0", "-ffp-contract=off"]
LINK: list[str] = []
MACROS = [("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"), ("CYTHON_TRACE_NOGIL", "1" if MODE == "coverage" else "0")]
# Python's own flags have -fwrapv, with which a signed overflow is defined, and so not reported.
SANITIZERS = ["-fsanitize=address,undefined", "-fno-wrapv", "-fno-omit-frame-pointer"]
if SANITIZE:
    COMPILE += SANITIZERS
    LINK += ["-fsanitize=address,undefined"]

EXTENSIONS = [
    Extension(
        f"clover._native.{source.stem}",
        [source.as_posix()],
        include_dirs=["csrc"],
        depends=sorted(
            part.as_posix() for part in (*Path("csrc").glob("*.h"), *Path("clover/_native").glob(f"{source.stem}.pxd"))
        ),
        define_macros=MACROS,
        extra_compile_args=COMPILE,
        extra_link_args=LINK,
    )
    for source in sorted(Path("csrc").glob("*.pyx"))
]

# Python's own rules hold in these, whatever the build: negative indices, checked bounds, whole division.
AS_PYTHON = {
    "language_level": 3,
    "annotation_typing": False,
    "boundscheck": True,
    "wraparound": True,
    "initializedcheck": True,
    "cdivision": False,
    "nonecheck": True,
    "embedsignature": True,
    "auto_pickle": False,
    "emit_code_comments": False,
    "show_performance_hints": False,
}
AS_COMPILED = ["-O1", "-g1", *SANITIZERS] if SANITIZE else ["-O2", "-g0"]
COMPILED = [
    Extension(
        ".".join(source.with_suffix("").parts),
        [source.with_suffix(".py").as_posix()],
        # Cython takes a typed object's method for a value of another type than it is; no such thing shall pass.
        extra_compile_args=[*AS_COMPILED, "-ffp-contract=off", "-Werror=incompatible-pointer-types"],
        extra_link_args=LINK,
    )
    for source in sorted(Path("clover").rglob("*.pxd"))
    if source.parent.name != "_native" and (MODE == "release" or SANITIZE)
]

# What Cython would otherwise put into every module (memory views, calls, conversions): half of all C.
SHARED = "clover._native.shared" if MODE == "release" or SANITIZE else None
if SHARED:
    EXTENSIONS.append(Extension(SHARED, sources=[], extra_compile_args=COMPILE, extra_link_args=LINK))

# The emulated NVML is plain C and no module of Python: it takes NVML's soname and is found by its path.
EMULATOR = Path("csrc/nvml_emulator")
EXTENSIONS.append(
    Extension(
        "clover._native.nvml_emulator",
        sorted(source.as_posix() for source in EMULATOR.glob("*.c")),
        depends=sorted(header.as_posix() for header in EMULATOR.glob("*.h")),
        extra_compile_args=[*COMPILE, "-std=c11", "-Wall", "-Wextra", "-fvisibility=hidden", "-pthread"],
        extra_link_args=[*LINK, "-Wl,-soname,libnvidia-ml.so.1", "-Wl,--no-undefined", "-pthread"],
    )
)

# Coverage maps lines through C files beside their sources, so only that build leaves them there.
BUILD_DIR = None if MODE == "coverage" else f"build/cython-{MODE}{'-sanitize' if SANITIZE else ''}"

# The families lie at the top level, where users look for them, and install as clover.models.
FAMILIES = ["clover.models", *(f"clover.models.{name}" for name in find_namespace_packages("models"))]

# Cython looks for a kernel's declarations beside its source, where they are not: without this, others would be built
# against new ones and the kernel itself would not.  Nor does it know that what it is told to do has changed, here.
for folder, kind in (("csrc", ".pyx"), ("clover", ".py")):
    for made in Path(BUILD_DIR or ".", folder).rglob("*.c"):
        stem = made.relative_to(BUILD_DIR or ".").with_suffix(kind)
        declared = Path("clover/_native", f"{made.stem}.pxd") if kind == ".pyx" else stem.with_suffix(".pxd")
        changed = max(path.stat().st_mtime for path in (Path("setup.py"), declared) if path.exists())
        if (stem.exists() or made.name == "shared.c") and made.stat().st_mtime < changed:
            made.unlink()

# Python would find the library of a module that is compiled no more before its source.
BUILT = {extension.name for extension in (*EXTENSIONS, *COMPILED)}
if MODE == "release":
    for root in (Path(), *Path("build").glob("lib.*")):
        for library in (root / "clover").rglob("*.so"):
            if ".".join((*library.relative_to(root).parent.parts, library.name.partition(".")[0])) not in BUILT:
                library.unlink()

TRANSLATE = {
    "include_path": ["."],
    "build_dir": BUILD_DIR,
    "nthreads": WORKERS,
    "shared_utility_qualified_name": SHARED,
}

setup(
    packages=[*find_packages(include=["clover", "clover.*"]), *FAMILIES],
    package_dir={"clover.models": "models"},
    package_data={
        "": ["py.typed"],
        **{".".join(path.parent.parts): ["*.pxd"] for path in Path("clover").rglob("*.pxd")},
        "clover._native": ["*.pyi", "*.pxd"],
        "clover.dashboard": ["assets/*"],
        "clover.devices": ["data/*.json"],
        "clover.energy": ["data/*.json"],
        "clover.grpc": ["*.proto", "*.binpb"],
        "clover.http.api": ["*.json"],
        "clover.importing": ["templates/*.txt"],
        "clover.research.simulate": ["data/*.json"],
        "clover.telemetry.dashboards": ["*.json", "*.yaml"],
        **{name: ["*.toml", "*.safetensors", "*.gz", "*.txt", "*.json", "LICENSE*", "*.md"] for name in FAMILIES},
    },
    include_package_data=False,
    ext_modules=[
        *cythonize(EXTENSIONS, compiler_directives=DIRECTIVES, **TRANSLATE),
        *cythonize(COMPILED, compiler_directives=AS_PYTHON, **TRANSLATE),
    ],
    options={"build_ext": {"parallel": WORKERS}},
)
