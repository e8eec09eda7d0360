"""What torch-tensorrt can be called with, as its wheels say: it cannot be imported without TensorRT and a GPU.

Read from the sources inside the wheels of these versions (CPython 3.11, x86-64).  `tests/gpu` holds the same against
the library that is installed there.
"""

from __future__ import annotations

NEEDS = {
    "2.12.1": {"torch": ">=2.12.0,<2.13.0", "tensorrt-cu13-libs": ">=10.16.1,<10.17.0"},
    "2.13.0": {"torch": ">=2.13.0,<2.14.0", "tensorrt-cu13-libs": ">=11.0.0,<11.1.0"},
    "2.14.0": {"torch": ">=2.14.0,<2.15.0", "tensorrt-cu13-libs": ">=11.1.0,<11.2.0"},
}
"""What the metadata of each version requires."""

VERSION = "2.13.0"

PARAMETERS: dict[str, frozenset[str]] = {
    "dynamo.compile": frozenset(
        {
            "exported_program",
            "arg_inputs",
            "device",
            "disable_tf32",
            "require_full_compilation",
            "min_block_size",
            "immutable_weights",
            "cache_built_engines",
            "reuse_cached_engines",
            "timing_cache_path",
            "use_fp32_acc",
            "hardware_compatible",
            "version_compatible",
            "lazy_engine_init",
            "optimization_level",
        }
    ),
    "save": frozenset(
        {
            "module",
            "file_path",
            "extra_files",
            "output_format",
            "inputs",
            "arg_inputs",
            "kwarg_inputs",
            "retrace",
            "use_legacy_exporter",
            "pickle_protocol",
            "dynamic_shapes",
        }
    ),
    "load": frozenset({"file_path", "extra_files"}),
}
"""Parameters by name; of `compile`, which takes some fifty and swallows any other, a selection."""

INPUT = frozenset({"shape", "min_shape", "opt_shape", "max_shape", "dtype", "format", "tensor_domain", "name"})
"""Keywords of `Input`, which has no signature of its own: "shape" alone, or the three others together."""

GONE = frozenset({"enabled_precisions", "use_explicit_typing", "refit", "make_refittable", "debug"})
"""What `compile` took once.  2.13 ignores the first two without a word: types are always those of the module."""

DEFAULTS = {"min_block_size": 5, "disable_tf32": False, "require_full_compilation": False}
"""Defaults that would be wrong here."""
