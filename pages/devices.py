"""Where a grid is timed: on this machine, or on a device of the operator's cluster. (Not a page.)"""

from collections import Counter
from collections.abc import Sequence

import streamlit as st

from optimizer.cluster.node import differences
from optimizer.cluster.nodes import Device
from optimizer.system.environment import environment
from pages import address, backlog
from pages.markup import plain

HERE = "this machine"


def time_on() -> tuple[str, str] | None:
    """The device that the visitor chose of the operator's cluster, by its key, and its processor: both empty
    for this machine; None for one that is not there now."""
    attached = backlog.cluster()
    if attached is None:
        return "", ""
    backlog.follow_cluster(attached)
    chosen = str(st.session_state.get("sweep_on", st.query_params.get("sweep_on", HERE)))
    devices = by_name([*attached.devices.values()], chosen)
    name = st.selectbox(
        "Time on",
        dict.fromkeys((HERE, *sorted(devices), chosen)),
        **address.in_address("sweep_on"),
        help="\n".join(
            [
                "Each kind of machine is timed against its own baseline. The model and images are sent to "
                "those that lack them.\n",
                *(f"- **{plain(one)}**: {plain(described(devices[one]))}" for one in sorted(devices)),
                *(f"- Not used: {plain(one)}" for one in attached.unused),
            ]
        ),
    )
    if attached.problem or not devices:
        words = attached.problem or "no node of the cluster can be used now"
        st.caption(f":material/cloud_off: {plain(words)}")
    if name == HERE:
        return "", ""
    if name not in devices:
        st.info(plain(f"{name} is not there now: choose another."), icon=":material/info:")
        return None
    st.caption(plain(described(devices[name])))
    there = devices[name].environment
    return there.key, there.cpu


def by_name(devices: Sequence[Device], chosen: str) -> dict[str, Device]:
    """By the name of one of those that are alike, and that which was ``chosen`` stays; with the beginning of
    the environment's key where nodes of another kind have the name too, or it is this machine's."""
    kinds = Counter([HERE, *(name for device in devices for name in {*device.names})])
    found = dict[str, Device]()
    for device in devices:
        full = {name: f"{name} ({device.environment.key[:6]})" for name in device.names}
        names = [name if kinds[name] == 1 else full[name] for name in device.names]
        found[chosen if chosen in (*names, *full.values()) else names[0]] = device
    return found


def described(device: Device) -> str:
    """The nodes of a device, and what they have that this machine has not."""
    names = f"{', '.join(device.names)}: " if len(device.names) > 1 else ""
    apart = differences(device.environment, environment())
    return f"{names}{f'with {apart}' if apart else 'like this machine'}"


def slots_of(device: str, left: int) -> int:
    """How many of the configurations that are ``left`` a device is given at once, as far as that is known;
    the seconds that one took there are with its wait."""
    attached = backlog.cluster()
    found = attached.devices.get(device) if attached else None
    return max(1, min(found.slots, left)) if found else 1
