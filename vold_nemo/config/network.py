"""Which interfaces and adapters ranks talk over, checked before a rank waits for another that it can never reach.

Two checks, neither of which imports torch.  :func:`findings` reads the variables alone, so a login node finds the same;
:func:`here` compares them with the node that it runs on, in some milliseconds.

``NCCL_SOCKET_IFNAME`` and ``NCCL_IB_HCA`` are read as NCCL reads them (``src/os/linux.cc``, ``src/transport/net_ib/init.cc``):

    eth,ib0        every name that begins with one of these         =eth0,eth1     these names
    ^docker,lo     every name but those that begin with these       ^=docker0      every name but these
    mlx5_0:1       of adapters also a port

``^`` and ``=`` stand once, before the whole list.  ``GLOO_SOCKET_IFNAME`` takes plain names: torch's gloo knows no prefixes.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vold_nemo.config import nccl
from vold_nemo.config.errors import ConfigError, NodeError
from vold_nemo.config.launcher import Launch

IFNAME, HCA, GLOO = "NCCL_SOCKET_IFNAME", "NCCL_IB_HCA", "GLOO_SOCKET_IFNAME"
KEYS = {IFNAME: "cluster.launch.interface", HCA: "cluster.launch.hca"}
ADAPTERS = Path("/sys/class/infiniband")
_FORM = "NAME,... (what begins so), =NAME,... (these), ^NAME,... or ^=NAME,... (all but these); ^ and = stand once, in front"
# NCCL reads these with strtoll, as C does: 1, 0x1, -1; what it makes of a word differs between its versions.
_NUMBERS = (
    "NCCL_IB_DISABLE", "NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE", "NCCL_NVLS_ENABLE", "NCCL_CUMEM_ENABLE", "NCCL_IB_GID_INDEX",
    "NCCL_IB_TIMEOUT", "NCCL_IB_RETRY_CNT", "NCCL_IB_QPS_PER_CONNECTION", "NCCL_CROSS_NIC",
)  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """What a list of names chooses: ``tokens`` are (name, port or None), as they stand."""

    tokens: tuple[tuple[str, int | None], ...]
    exclude: bool = False
    exact: bool = False

    @classmethod
    def parse(cls, key: str, value: str) -> Choice:
        """
        Raises:
            ConfigError: ``value`` names nothing, or what NCCL would read otherwise than it looks.
        """
        rest = value.removeprefix("^")
        exclude, exact = rest != value, rest.startswith("=")
        tokens = []
        for part in rest.removeprefix("=").split(","):
            name, colon, port = part.partition(":")
            if not name or set(name) & set("^= \t") or (colon and not port.isdigit()):
                raise ConfigError(key, value, _FORM, f"correct {key}")
            tokens.append((name, int(port) if colon else None))
        return cls(tuple(tokens), exclude, exact)

    def names(self, token: tuple[str, int | None], name: str) -> bool:
        return name == token[0] if self.exact else name.startswith(token[0])

    def takes(self, name: str) -> bool:
        return any(self.names(token, name) for token in self.tokens) is not self.exclude


@dataclass(frozen=True)
class Interface:
    """A network interface; ``addresses`` of IPv4 and IPv6."""

    name: str
    up: bool
    addresses: tuple[str, ...]

    def usable(self, family: str | None = None) -> bool:
        """Whether NCCL takes it: up, with an address (of ``NCCL_SOCKET_FAMILY``; IPv6's loopback does not count)."""
        known = [at for at in self.addresses if at != "::1"]
        if family in ("AF_INET", "AF_INET6"):
            known = [at for at in known if (":" in at) == (family == "AF_INET6")]
        return self.up and bool(known)

    @property
    def loops(self) -> bool:
        """Whether it leads to its own node alone."""
        return all(at == "::1" or at.startswith("127.") for at in self.addresses)

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.addresses) or 'no address'}{'' if self.up else ', down'})"


def interfaces() -> list[Interface]:
    """Those of this node."""
    import psutil

    stats, families = psutil.net_if_stats(), (socket.AF_INET, socket.AF_INET6)
    return [
        Interface(name, name in stats and stats[name].isup,
                  tuple(each.address.partition("%")[0] for each in known if each.family in families))
        for name, known in sorted(psutil.net_if_addrs().items())
    ]  # fmt: skip


def adapters(folder: Path = ADAPTERS) -> dict[str, dict[int, str]]:
    """{adapter: {port: state}} of this node, as the kernel says it: ``ACTIVE``, ``DOWN``, ``INIT``, ..."""
    found: dict[str, dict[int, str]] = {}
    for adapter in sorted(folder.iterdir()) if folder.is_dir() else ():
        ports = sorted((adapter / "ports").iterdir()) if (adapter / "ports").is_dir() else []
        found[adapter.name] = {int(port.name): _line(port / "state").rpartition(" ")[2] for port in ports}
    return found


def findings(environment: Mapping[str, str], *, prefix: str = "") -> Iterator[ConfigError]:
    """What is wrong with the variables themselves; ``prefix`` is where they were given: ``cluster.launch.environment.``

    Without a prefix they are what a process inherited, from modules and images, too: a name that NCCL does not read is then
    nobody's mistake for certain (``command/node.py`` warns of it).
    """
    for name in sorted(environment) if prefix else ():
        if other := nccl.meant(name):
            yield ConfigError(f"{prefix}{name}", environment[name], f"a variable that NCCL reads: {other}?", f"write {other}")
    for name in (IFNAME, HCA):
        if name in environment:
            try:
                Choice.parse(f"{prefix}{name}", environment[name])
            except ConfigError as error:
                yield error
    for name in _NUMBERS:
        if environment.get(name, "").strip() and _number(environment[name]) is None:
            mend = "what NCCL makes of anything else differs between its versions: write 1 or 0, or the number"
            yield ConfigError(f"{prefix}{name}", environment[name], "a whole number", mend)
    family = environment.get("NCCL_SOCKET_FAMILY")
    if family not in (None, "AF_INET", "AF_INET6"):
        mend = "NCCL ignores anything else"
        yield ConfigError(f"{prefix}NCCL_SOCKET_FAMILY", family, "AF_INET | AF_INET6", mend)
    gloo = environment.get(GLOO, "")
    if set(gloo) & set("^= "):
        mend = f"name interfaces, or leave it out: it then follows {IFNAME}"
        yield ConfigError(f"{prefix}{GLOO}", gloo, "NAME,NAME: gloo knows neither ^ nor =", mend)
    yield from _contradictions(environment, prefix)


def _contradictions(environment: Mapping[str, str], prefix: str) -> Iterator[ConfigError]:
    without = bool(_number(environment.get("NCCL_IB_DISABLE", "")))
    net = environment.get("NCCL_NET", "").lower()
    why = "NCCL_IB_DISABLE=1" if without else "NCCL_NET=Socket" if net == "socket" else ""
    if why and HCA in environment:
        mend = f"leave one of the two out: with {why} NCCL uses no adapter, and {KEYS[HCA]} names some"
        yield ConfigError(f"{prefix}{HCA}", environment[HCA], f"unset beside {why}", mend)
    if without and net == "ib":
        allowed = "unset beside NCCL_IB_DISABLE=1"
        yield ConfigError(f"{prefix}NCCL_NET", environment["NCCL_NET"], allowed, "leave one of them out")
    if "NCCL_P2P_LEVEL" in environment and _number(environment.get("NCCL_P2P_DISABLE", "")):
        mend = "leave one of them out: with NCCL_P2P_DISABLE=1 there is no such transport"
        yield ConfigError(f"{prefix}NCCL_P2P_LEVEL", environment["NCCL_P2P_LEVEL"], "unset beside NCCL_P2P_DISABLE=1", mend)


def here(
    environment: Mapping[str, str], place: Launch, nodes: int, *, found: Iterable[Interface] | None = None,
    folder: Path = ADAPTERS, patience: float = 5.0,
) -> Iterator[NodeError]:  # fmt: skip
    """What is wrong with the variables, free of :func:`findings`, on this node: what they name is not here, or not in use.

    Args:
        nodes: that the ranks of this launch lie on.
        found, folder: interfaces and adapters of this node, unless they are those that it has.
        patience: seconds that a port may still be held by a process that is just ending.
    """
    known = list(interfaces() if found is None else found)
    for name in (IFNAME, GLOO):
        if environment.get(name):
            yield from _interfaces(name, environment, known, nodes)
    if environment.get(HCA):
        yield from _adapters(environment[HCA], adapters(folder), folder)
    if place.host is not None:
        yield from _meeting(environment, place, nodes, patience)


def of_gloo(environment: Mapping[str, str], found: Iterable[Interface] | None = None) -> str | None:
    """What ``GLOO_SOCKET_IFNAME`` must be on this node for gloo to talk over the first interface that NCCL takes.

    None where it is set, or where ``NCCL_SOCKET_IFNAME`` is not.
    """
    asked, family = environment.get(IFNAME), environment.get("NCCL_SOCKET_FAMILY")
    if not asked or environment.get(GLOO):
        return None
    choice = Choice.parse(IFNAME, asked)
    usable = [each.name for each in (interfaces() if found is None else found) if each.usable(family)]
    taken = [name for name in usable if choice.takes(name)]
    # An interface of the containers of a node carries nothing to another one; NCCL, too, takes it last.
    return min(taken, key=lambda name: name.startswith(("lo", "docker", "virbr")), default=None)


def _interfaces(name: str, environment: Mapping[str, str], known: list[Interface], nodes: int) -> Iterator[NodeError]:
    value, family = environment[name], environment.get("NCCL_SOCKET_FAMILY") if name == IFNAME else None
    choice = Choice.parse(name, value) if name == IFNAME else Choice(tuple((one, None) for one in value.split(",")), exact=True)
    here = f"one of this node's: {', '.join(map(str, known)) or 'none'}"
    key = f"{name} ({KEYS[name]})" if name in KEYS else name
    if not choice.exclude:
        for token in choice.tokens:
            named = [each for each in known if choice.names(token, each.name)]
            if not named:
                mend = f"name one that every node has, or leave {token[0]} out (ip -brief address, on this node)"
                yield NodeError(key, f"{value}: no interface {token[0]}{'' if choice.exact else '*'}", here, mend)
            elif not any(each.usable(family) for each in named):
                wanted = f" of {family}" if family else ""
                mend = "have it brought up, or name another (ip -brief address, on this node)"
                yield NodeError(key, f"{value}: {', '.join(map(str, named))} is not up with an address{wanted}", here, mend)
    usable = [each for each in known if choice.takes(each.name) and each.usable(family)]
    if choice.exclude and not usable:
        yield NodeError(key, f"{value}: no interface is left", here, "exclude fewer")
    if nodes > 1 and usable and all(each.loops for each in usable):
        mend = "name the interface that joins the nodes"
        yield NodeError(key, f"{value}: {', '.join(each.name for each in usable)} reaches this node alone", here, mend)


def _adapters(value: str, known: dict[str, dict[int, str]], folder: Path) -> Iterator[NodeError]:
    choice, key = Choice.parse(HCA, value), f"{HCA} ({KEYS[HCA]})"
    said = [f"{name} ({', '.join(f'port {n} {state}' for n, state in ports.items())})" for name, ports in known.items()]
    here = f"adapters in {folder}: {', '.join(said) or 'none'}"
    if choice.exclude:
        left = [name for name, ports in known.items() if choice.takes(name) and "ACTIVE" in ports.values()]
        if not left:
            mend = "exclude fewer, or set NCCL_IB_DISABLE=1"
            yield NodeError(key, f"{value}: no adapter with an active port is left", here, mend)
        return
    for token in choice.tokens:
        named = {name: ports for name, ports in known.items() if choice.names(token, name)}
        states = [state for ports in named.values() for port, state in ports.items() if token[1] in (None, port)]
        if not named:
            mend = f"name adapters that every node has (ibv_devinfo, on this node), or leave {token[0]} out"
            yield NodeError(key, f"{value}: no adapter {token[0]}{'' if choice.exact else '*'}", here, mend)
        elif not states:
            yield NodeError(key, f"{value}: {', '.join(named)} has no port {token[1]}", here, "correct the port (from 1 on)")
        elif "ACTIVE" not in states:
            mend = "leave it out, or have the link looked at (ibstat, on this node)"
            yield NodeError(key, f"{value}: {', '.join(named)} is {', '.join(dict.fromkeys(states))}", here, mend)


def _number(value: str) -> int | None:
    """As strtoll reads it with any base; None for what is no number."""
    try:
        return int(value.strip(), 0)
    except ValueError:
        return int(value) if value.strip().isdigit() else None  # 010: C's octal, which Python refuses


def _meeting(environment: Mapping[str, str], place: Launch, nodes: int, patience: float) -> Iterator[NodeError]:
    """Rank 0's host has an address, and there rank 0 can listen."""
    assert place.host is not None
    if not 0 < place.port < 1 << 16:
        yield NodeError("MASTER_PORT", place.port, "1 to 65535", "export a free port of rank 0's node, or unset it")
        return
    if nodes > 1 and (place.host in ("localhost", "0.0.0.0", "::", "::1") or place.host.startswith("127.")):
        mend = "export rank 0's host (scontrol show hostnames: the first), or unset MASTER_ADDR under srun"
        yield NodeError("MASTER_ADDR", place.host, f"an address of rank 0's node that the other {nodes - 1} reach", mend)
        return
    by = "MASTER_ADDR" if environment.get("MASTER_ADDR") else "MASTER_ADDR (first host of SLURM_STEP_NODELIST)"
    try:
        known = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except OSError as error:
        mend = f"export MASTER_ADDR=an address of rank 0's node ({error.strerror or error})"
        yield NodeError(by, place.host, "a name that this node can resolve (getent hosts NAME)", mend)
        return
    # torchrun's agent listens itself, and its ranks are guests of it
    if place.rank == 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        yield from _port(by, place, known[0], patience)


def _port(by: str, place: Launch, address: tuple, patience: float) -> Iterator[NodeError]:
    family, kind, _, _, where = address
    deadline = time.monotonic() + patience
    while True:
        try:
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as torch's store does
                probe.bind(where)
                probe.listen(1)
            return
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                allowed = f"an address of rank 0's node, {socket.gethostname()}"
                yield NodeError(by, f"{place.host} ({where[0]})", allowed, "unset MASTER_ADDR, or export rank 0's host")
                return
            if time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            mend = f"another process listens there (ss -ltnp 'sport = :{place.port}'): end it, or export MASTER_PORT"
            yield NodeError("MASTER_PORT", place.port, f"a free port of rank 0's node ({error.strerror})", mend)
            return


def _line(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return "unreadable"
