"""The attention modes: which functions stand in a layer. To add one: a function in a file, and a line here."""

from collections.abc import Callable

from digar.networks.attention.branch import Branch, TokenLayout
from digar.networks.attention.full import FullAttention
from digar.networks.attention.grouped import GridAttention, LocalAttention
from digar.networks.attention.sequence import SequenceAttention

MODES: dict[str, tuple[Callable[[TokenLayout], Branch], ...]] = {  # one, or an undilated and a dilated one
    "none": (FullAttention,),  # plain attention, as in AR-SSL4M
    "full+sequence": (FullAttention, SequenceAttention),  # gated: AR-SSL4M-DEMO's
    "local+grid": (LocalAttention, GridAttention),  # gated: D-Former's two scopes; linear cost
    "local": (LocalAttention,),  # ungated layers, to be used in turn as D-Former does
    "grid": (GridAttention,),
}
UNMEASURED = ("full+grid", "local+sequence")  # were modes once, without a result that spoke for them


def check_mode(mode: str) -> None:
    """Raises ValueError if a mode is not one of ``MODES``."""
    if mode in UNMEASURED:
        raise ValueError(f"attention mode {mode!r} is gone, it was never measured; the modes are {', '.join(MODES)}")
    if mode not in MODES:
        raise ValueError(f"attention mode {mode!r} is unknown; the modes are {', '.join(MODES)}")
