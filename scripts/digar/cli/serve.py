"""The bundle's MONAI Label server: ``apps/digar`` over a folder of images or a DICOMweb store."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from digar.cli.bundle import bundle_root

ADDRESSES = ("http://", "https://")


def serve(studies: str | Path, host: str = "127.0.0.1", port: int = 8000, hosts: Sequence[str] = ()) -> None:
    """Start the server, and stay until it is stopped.

    Args:
        studies: folder of images; labels go into its sub-folder ``labels``. Or the address of a DICOMweb store.
        host: address that it listens on. It has no login: people at other machines come through a tunnel, or through a
            proxy that asks who they are.
        port: that it listens on.
        hosts: names besides the loopback's under which it may be called, such as that of the proxy.

    Raises:
        ImportError: MONAI Label is not installed.
        FileNotFoundError: there is no such folder of images.
    """
    if not str(studies).startswith(ADDRESSES) and not Path(studies).is_dir():
        raise FileNotFoundError(f"there is no folder {studies}: name a folder of images, or a DICOMweb store's address")
    if importlib.util.find_spec("monailabel") is None:
        raise ImportError("MONAI Label is not installed here: docs/monailabel.md has the commands that install it")
    from monailabel.main import Main

    app = bundle_root() / "apps" / "digar"
    options = ["--app", str(app), "--studies", str(studies), "--host", host, "--port", str(port)]
    if hosts:
        options += ["--conf", "hosts", ",".join(hosts)]
    server = Main()
    server.action_start_server(server.args_parser().parse_args(["start_server", *options]))
