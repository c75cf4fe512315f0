"""Limits of a process are raised as far as they may be, and what is too low is said with what to ask for."""

import resource

import pytest

from vold_nemo.config import limits


@pytest.fixture
def system(monkeypatch):
    """``system[resource.RLIMIT_X] = (soft, hard)``; everything else has no limit."""
    table = {}
    monkeypatch.setattr(resource, "getrlimit", lambda what: table.get(what, (-1, -1)))
    monkeypatch.setattr(resource, "setrlimit", lambda what, pair: table.update({what: pair}))
    return table


def test_soft_limits_rise_to_what_is_needed_and_hard_ones_stay(system):
    system.update({
        resource.RLIMIT_NOFILE: (256, 524288), resource.RLIMIT_MEMLOCK: (65536, -1), resource.RLIMIT_NPROC: (4096, 4096),
        resource.RLIMIT_STACK: (1 << 20, 64 << 20),
    })  # fmt: skip
    short = limits.raise_limits(128, 8)
    assert not short and system == {
        resource.RLIMIT_NOFILE: (4 * 128 + 512, 524288),
        resource.RLIMIT_MEMLOCK: (-1, -1), resource.RLIMIT_NPROC: (4096, 4096), resource.RLIMIT_STACK: (8 << 20, 64 << 20),
    }  # fmt: skip


def test_a_hard_limit_that_is_too_low_is_taken_whole_and_said(system):
    system.update({
        resource.RLIMIT_NOFILE: (256, 1024), resource.RLIMIT_MEMLOCK: (65536, 1 << 20), resource.RLIMIT_NPROC: (500, 1000),
        resource.RLIMIT_AS: (1 << 30, 1 << 30),
    })  # fmt: skip
    short = limits.raise_limits(1024, 8)
    assert [limit.topic for limit in short] == ["open files", "locked memory", "processes", "address space"]
    assert system[resource.RLIMIT_NOFILE] == (1024, 1024) and system[resource.RLIMIT_NPROC] == (1000, 1000)
    with_adapters, without = (list(limits.warnings(short, there)) for there in (True, False))
    assert len(with_adapters) == 4 and len(without) == 3 and not any("locked memory" in line for line in without)
    assert "open files: 1,024 allowed, 1,024 at most, 4,608 needed; connections will be refused" in with_adapters[0]
    assert "LimitNOFILE" in with_adapters[0] and "LimitMEMLOCK=infinity" in with_adapters[1]


def test_the_doctor_says_what_a_node_is_short_of(system, monkeypatch):
    from vold_nemo.megatron import launch_probes

    system[resource.RLIMIT_MEMLOCK] = (65536, 1 << 20)
    monkeypatch.setattr(launch_probes.network, "adapters", dict)
    assert {line.topic: line.grade for line in launch_probes.system_limits(128, 8)}["locked memory"] == "note"
    monkeypatch.setattr(launch_probes.network, "adapters", lambda: {"mlx5_0": {1: "ACTIVE"}})
    lines = {line.topic: line for line in launch_probes.system_limits(128, 8)}
    assert lines["locked memory"].grade == "missing" and "LimitMEMLOCK=infinity" in lines["locked memory"].follows
    assert {line.grade for topic, line in lines.items() if topic not in ("locked memory", "core dumps", "tasks")} == {"ok"}
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "=none0")
    said = {line.topic: line for line in launch_probes.networks()}
    assert said["adapters"].what == "mlx5_0:1 ACTIVE" and said["network"].grade == "missing" and "none0" in said["network"].what


def test_control_groups_and_core_dumps_are_looked_at(tmp_path, system):
    assert limits.tasks_of_group(tmp_path) is None
    for text, most in (("max\n", None), ("4096\n", 4096)):
        (tmp_path / "pids.max").write_text(text)
        assert limits.tasks_of_group(tmp_path) == most
    pattern = tmp_path / "core_pattern"
    pattern.write_text("|/usr/lib/systemd/systemd-coredump %P\n")
    assert limits.core_dumps(pattern) is None
    pattern.write_text("core.%p\n")
    assert "core.%p (up to any number bytes)" in limits.core_dumps(pattern)
    system[resource.RLIMIT_CORE] = (0, -1)
    assert limits.core_dumps(pattern) is None
