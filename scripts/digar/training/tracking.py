"""Experiment tracking by MLflow (``--tracking mlflow``) without its reports of usage to the internet."""

import os
import sys

OPT_OUT = "MLFLOW_DISABLE_TELEMETRY"


def disable_telemetry() -> None:
    """Switch MLflow's usage reports off, unless the environment asks for them (``MLFLOW_DISABLE_TELEMETRY=false``).

    MLflow 3 sends them from its first logged value on. MONAI has imported it by then where it is installed, so that
    the variable alone comes too late for a process that runs already; processes started from it inherit it.
    """
    os.environ.setdefault(OPT_OUT, "true")
    telemetry = sys.modules.get("mlflow.telemetry")
    if telemetry is not None:
        telemetry.set_telemetry_client()  # reads the variable again
