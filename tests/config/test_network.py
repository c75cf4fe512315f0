"""Network variables against nodes that are made up: what cannot work is said with node, key, value and what is there."""

import socket

import pytest

from vold_nemo.config import ConfigError, network
from vold_nemo.config.errors import NodeError
from vold_nemo.config.launcher import Launch, nodes, ranks_on_node
from vold_nemo.config.nccl import is_unknown, meant
from vold_nemo.config.network import Choice, Interface, findings, here, of_gloo

NODE = [
    Interface("docker0", True, ("172.17.0.1",)), Interface("eth0", True, ("10.0.0.7", "fe80::1")),
    Interface("eth1", True, ()), Interface("ib0", True, ("10.1.0.7",)), Interface("ib1", False, ("10.2.0.7",)),
    Interface("lo", True, ("127.0.0.1", "::1")),
]  # fmt: skip
ALONE = Launch(1, 2, 1, None, 0)


@pytest.fixture
def adapters(tmp_path):
    """/sys/class/infiniband of a node with two active adapters and one whose link is down."""
    for name, state in (("mlx5_0", "4: ACTIVE"), ("mlx5_1", "4: ACTIVE"), ("mlx5_10", "1: DOWN")):
        port = tmp_path / name / "ports" / "1"
        port.mkdir(parents=True)
        (port / "state").write_text(state + "\n")
    return tmp_path


def said(environment, folder, *, nodes=2, place=ALONE):
    return list(here(environment, place, nodes, found=NODE, folder=folder, patience=0.0))


@pytest.mark.parametrize(
    ("value", "takes", "leaves"),
    [
        ("eth", "eth0 eth1", "ib0 lo docker0"), ("=eth0,ib0", "eth0 ib0", "eth1 ib1"), ("^docker,lo", "eth0 ib1", "docker0 lo"),
        ("^=docker0", "docker1 lo", "docker0"), ("=mlx5_1:1", "mlx5_1", "mlx5_10"), ("mlx5_1:1", "mlx5_1 mlx5_10", "mlx5_0"),
    ],
)  # fmt: skip
def test_lists_of_names_are_read_as_nccl_reads_them(value, takes, leaves):
    choice = Choice.parse("key", value)
    assert all(choice.takes(name) for name in takes.split()) and not any(choice.takes(name) for name in leaves.split())


@pytest.mark.parametrize("value", ["", "^", "=", "eth0,^lo", "eth0,=ib0", "=^lo", "eth0, ib0", "mlx5_0:one"])
def test_a_list_that_nccl_would_read_otherwise_than_it_looks_is_refused(value):
    (error,) = findings({"NCCL_IB_HCA": value})
    assert error.key == "NCCL_IB_HCA" and "stand once, in front" in error.allowed


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"NCCL_SOCKET_IFNAME": "=eth7"}, ["=eth7: no interface eth7", "eth0 (10.0.0.7, fe80::1)"]),
        ({"NCCL_SOCKET_IFNAME": "en"}, ["no interface en*"]),
        ({"NCCL_SOCKET_IFNAME": "=ib1"}, ["ib1 (10.2.0.7, down) is not up with an address"]),
        ({"NCCL_SOCKET_IFNAME": "=eth1"}, ["eth1 (no address) is not up with an address"]),
        ({"NCCL_SOCKET_IFNAME": "ib", "NCCL_SOCKET_FAMILY": "AF_INET6"}, ["not up with an address of AF_INET6"]),
        ({"NCCL_SOCKET_IFNAME": "^eth,ib,lo,docker"}, ["no interface is left"]),
        ({"NCCL_SOCKET_IFNAME": "=lo"}, ["lo reaches this node alone"]),
        ({"GLOO_SOCKET_IFNAME": "eth"}, ["no interface eth"]),  # gloo knows no prefixes
        ({"NCCL_IB_HCA": "=mlx5_0,mlx5_3"}, ["no adapter mlx5_3", "mlx5_0 (port 1 ACTIVE)"]),
        ({"NCCL_IB_HCA": "mlx5_0:2"}, ["mlx5_0 has no port 2"]),
        ({"NCCL_IB_HCA": "=mlx5_10"}, ["mlx5_10 is DOWN", "ibstat"]),
        ({"NCCL_IB_HCA": "^mlx5_0,mlx5_1"}, ["no adapter with an active port is left"]),
    ],
)
def test_what_a_node_does_not_have_is_said_with_what_it_has(monkeypatch, adapters, environment, words):
    monkeypatch.setenv("SLURMD_NODENAME", "n17")
    assert not list(findings(environment))
    (error,) = said(environment, adapters)
    assert isinstance(error, NodeError) and str(error).startswith("on n17: ") and error.mend
    assert all(word in str(error) for word in words), str(error)
    assert error.key.split()[0] in environment


@pytest.mark.parametrize(
    "environment",
    [
        {}, {"NCCL_SOCKET_IFNAME": "eth"}, {"NCCL_SOCKET_IFNAME": "^docker,lo"}, {"NCCL_SOCKET_IFNAME": "=eth0,ib0"},
        {"NCCL_IB_HCA": "mlx5"}, {"NCCL_IB_HCA": "=mlx5_0:1,mlx5_1"}, {"NCCL_IB_HCA": "^mlx5_10"},
        {"GLOO_SOCKET_IFNAME": "ib0"},
    ],
)  # fmt: skip
def test_what_a_node_has_is_let_pass(adapters, environment):
    assert not list(findings(environment)) and not said(environment, adapters)


def test_one_node_may_talk_over_its_loopback(adapters):
    assert not said({"NCCL_SOCKET_IFNAME": "lo"}, adapters, nodes=1)


def test_a_node_without_adapters_is_told_from_one_with_others(tmp_path):
    (error,) = said({"NCCL_IB_HCA": "mlx5"}, tmp_path / "nowhere")
    assert "nowhere: none" in error.allowed


@pytest.mark.parametrize(
    ("environment", "key"),
    [
        ({"NCCL_SOCKET_IFNAM": "eth0"}, "NCCL_SOCKET_IFNAM"), ({"NCLL_SOCKET_IFNAME": "eth0"}, "NCLL_SOCKET_IFNAME"),
        ({"NCCL_IB_DISABLED": "1"}, "NCCL_IB_DISABLED"), ({"NCCL_IB_DISABLE": "true"}, "NCCL_IB_DISABLE"),
        ({"NCCL_IB_DISABLE": "1", "NCCL_IB_HCA": "mlx5"}, "NCCL_IB_HCA"),
        ({"NCCL_NET": "Socket", "NCCL_IB_HCA": "mlx5"}, "NCCL_IB_HCA"),
        ({"NCCL_NET": "IB", "NCCL_IB_DISABLE": "1"}, "NCCL_NET"), ({"NCCL_SOCKET_FAMILY": "ipv6"}, "NCCL_SOCKET_FAMILY"),
        ({"NCCL_P2P_DISABLE": "1", "NCCL_P2P_LEVEL": "NVL"}, "NCCL_P2P_LEVEL"),
        ({"GLOO_SOCKET_IFNAME": "^lo"}, "GLOO_SOCKET_IFNAME"),
    ],
)  # fmt: skip
def test_variables_that_nccl_would_ignore_or_that_exclude_each_other_are_named(environment, key):
    (error,) = findings(environment, prefix="cluster.launch.environment.")
    assert error.key == f"cluster.launch.environment.{key}" and error.value == environment[key] and error.mend


def test_a_variable_that_is_like_none_may_be_a_plugins():
    assert meant("NCCL_FASTRAK_CTRL_DEV") is None and is_unknown("NCCL_FASTRAK_CTRL_DEV")
    for name in ("NCCL_DEBUG", "NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_ASYNC_ERROR_HANDLING", "PATH", "HF_HOME"):
        assert meant(name) is None and not is_unknown(name)


@pytest.mark.parametrize(
    ("environment", "chosen"),
    [
        ({}, None), ({"NCCL_SOCKET_IFNAME": "ib"}, "ib0"), ({"NCCL_SOCKET_IFNAME": "^lo"}, "eth0"),
        ({"NCCL_SOCKET_IFNAME": "=lo,eth0"}, "eth0"), ({"NCCL_SOCKET_IFNAME": "ib", "GLOO_SOCKET_IFNAME": "eth0"}, None),
        ({"NCCL_SOCKET_IFNAME": "=lo"}, "lo"),
    ],
)  # fmt: skip
def test_gloo_follows_nccl_by_a_name_that_this_node_has(environment, chosen):
    assert of_gloo(environment, NODE) == chosen


def test_a_host_without_an_address_and_one_of_another_node_are_named(adapters):
    (error,) = said({"MASTER_ADDR": "no-such-host.invalid"}, adapters, place=Launch(1, 2, 0, "no-such-host.invalid", 29500))
    assert error.key == "MASTER_ADDR" and error.value == "no-such-host.invalid" and "can resolve" in error.allowed
    (error,) = said({"MASTER_ADDR": "192.0.2.1"}, adapters, place=Launch(0, 2, 0, "192.0.2.1", 29500))  # TEST-NET-1: nobody's
    assert error.key == "MASTER_ADDR" and socket.gethostname() in error.allowed


def test_a_busy_port_is_said_by_rank_0_and_not_by_a_guest_of_torchruns_store(adapters):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        place = Launch(0, 2, 0, "127.0.0.1", port)
        (error,) = said({}, adapters, nodes=1, place=place)
        assert (error.key, error.value) == ("MASTER_PORT", port) and "ss -ltnp" in error.mend
        assert not said({"TORCHELASTIC_USE_AGENT_STORE": "True"}, adapters, nodes=1, place=place)
        assert not said({}, adapters, nodes=1, place=Launch(1, 2, 1, "127.0.0.1", port))
    assert not said({}, adapters, nodes=1, place=place)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "0.0.0.0", "::1"])
def test_an_address_that_stays_on_its_node_meets_nobody_on_others(adapters, host):
    (error,) = said({"MASTER_ADDR": host}, adapters, place=Launch(2, 4, 0, host, 29500))
    assert error.key == "MASTER_ADDR" and "the other 1 reach" in error.allowed
    assert not said({"MASTER_ADDR": host}, adapters, nodes=1, place=Launch(1, 2, 1, host, 29500))


@pytest.mark.parametrize("port", [-1, 0, 65536])
def test_a_port_that_is_none(adapters, port):
    (error,) = said({"MASTER_PORT": str(port)}, adapters, place=Launch(0, 2, 0, "127.0.0.1", port))
    assert error.key == "MASTER_PORT" and "65535" in error.allowed


def test_numbers_are_read_as_c_reads_them():
    for value in ("", "0x1", "1", " 0", "010"):
        assert not list(findings({"NCCL_IB_DISABLE": value}, prefix="cluster.launch.environment."))
    (error,) = findings({"NCCL_IB_DISABLE": "yes", "NCCL_IB_HCA": "mlx5_0"})
    assert error.key == "NCCL_IB_DISABLE"
    (error,) = findings({"NCCL_IB_DISABLE": "0x1", "NCCL_IB_HCA": "mlx5_0"})
    assert error.key == "NCCL_IB_HCA"


@pytest.mark.parametrize("name", [
    "NCCL_ROOT", "NCCL_VERSION", "NCCL_SHARP_DISABLE", "NCCL_TIMEOUT", "NCCL_IB_ENABLE", "NCCL_SHM_ENABLE", "RCCL_DEBUG",
])  # fmt: skip
def test_what_modules_and_plugins_export_is_no_slip(name):
    assert meant(name) is None and not list(findings({name: "1"}, prefix="cluster.launch.environment."))


def test_a_slip_is_refused_where_somebody_wrote_it_and_not_where_it_was_inherited():
    slips = {"NCCL_SOKET_IFNAME": "NCCL_SOCKET_IFNAME", "NCCL_DEBUGS": "NCCL_DEBUG", "NCL_DEBUG": "NCCL_DEBUG"}
    for slip, right in slips.items():
        assert meant(slip) == right
        (error,) = findings({slip: "x"}, prefix="cluster.launch.environment.")
        assert error.mend == f"write {right}" and not list(findings({slip: "x"}))


def test_this_node_has_a_loopback():
    assert any(each.loops and each.usable() for each in network.interfaces())


def test_launchers_say_how_many_nodes_and_ranks_there_are():
    assert (nodes({"SLURM_STEP_NUM_NODES": "16"}), ranks_on_node({"SLURM_STEP_TASKS_PER_NODE": "8(x15),4"})) == (16, 8)
    torchrun = {"RANK": "0", "GROUP_WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "4", "SLURM_STEP_NUM_NODES": "16"}
    assert (nodes(torchrun), ranks_on_node(torchrun)) == (2, 4)
    assert (nodes({}), ranks_on_node({})) == (1, 1)
    with pytest.raises(ConfigError):
        Choice.parse("key", "a,,b")
