"""Importing this keeps OpenVINO's telemetry out of the process: OpenVINO does without the package where it is missing.

The package `openvino-telemetry`, which comes with OpenVINO, writes an identifier of the user to the home folder when
OpenVINO is imported, and reports use to a web analytics service.  Nobody who serves models with Clover asked for it.
"""

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # an import of it raises ImportError
