"""All ranks of a node judge with one set of processes, and none of them is left over."""

import os
import signal
import subprocess
import sys

import pytest

from tests.ports import free_port
from tests.rewards.test_pool import gone
from vold_nemo.config import ConfigError, RewardConfig
from vold_nemo.rewards import node_scorer

OWN = "tests.rewards.own_verifiers"
ITEMS = [(f"{i % 3}/{i}", "x", f"{OWN}:echo" if i % 2 else "boxed") for i in range(11)]


def judge(nodes, items=ITEMS, **settings):
    """Runs on every rank of a world that is made to believe in ``nodes`` machines."""
    import torch.distributed as dist

    rank, world = dist.get_rank(), dist.get_world_size()
    node_scorer._node = lambda: f"node {rank * nodes // world}"
    listed = {"echo": f"{OWN}:echo"}
    scorer = node_scorer.NodeScorer(RewardConfig(**{"workers": 2, "seconds": 20.0, "verifiers": listed, **settings}))
    try:
        scorer.prepare(verifier for *_, verifier in items)
        started = len(scorer.scorer.pids())
        try:
            said = scorer.score(items)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        return started, said
    finally:
        scorer.close()


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_one_rank_of_each_node_judges_and_all_have_the_verdicts_in_order(gloo, nodes):
    found = gloo(4).run(judge, nodes)
    assert [started for started, _ in found] == [2 if rank % (4 // nodes) == 0 else 0 for rank in range(4)]
    expected = [float(i % 2 and i % 3 > 0) for i in range(11)]
    for _, said in found:
        assert [verdict.reward for verdict in said] == expected
        assert [verdict.extracted for verdict in said[1::2]] == [text for text, *_ in ITEMS[1::2]]


def test_fewer_answers_than_nodes(gloo):
    for _, said in gloo(4).run(judge, 4, ITEMS[1:3]):
        assert [verdict.reward for verdict in said] == [1.0, 0.0]


def fail(**settings):
    """The scoring rank raises; what the others see."""
    node_scorer.Scorer.score, kept = lambda *_: 1 / 0, node_scorer.Scorer.score
    try:
        return judge(1, **settings)
    finally:
        node_scorer.Scorer.score = kept


def test_a_scorer_that_fails_stops_every_rank(gloo):
    first, second = (said for _, said in gloo(2).run(fail))
    assert first == "ZeroDivisionError: division by zero"
    assert second == "RuntimeError: rank 0 could not judge: ZeroDivisionError: division by zero"


def check_names():
    try:
        judge(1, [("x", "x", "boxd")])
    except ConfigError as error:
        return error.key, error.value


def test_a_wrong_name_is_the_same_configuration_error_on_every_rank(gloo):
    assert gloo(2).run(check_names) == [("reward.verifier", "boxd")] * 2


RANK = """
import sys
import torch.distributed as dist
from vold_nemo.config import RewardConfig
from vold_nemo.rewards.node_scorer import NodeScorer
dist.init_process_group("gloo")
own = "tests.rewards.own_verifiers"
names = ("process", "hangs", "sleeps")
scorer = NodeScorer(RewardConfig(workers=2, seconds=600.0, verifiers={name: f"{own}:{name}" for name in names}))
scorer.score([("x", "x", f"{own}:process"), ("y", "x", f"{own}:process")])
print(*scorer.scorer.pids(), flush=True)
dist.barrier()
hangs = sys.argv[1] == "judging"
scorer.score([("hang" if hangs else "600", "x", f"{own}:hangs" if hangs else f"{own}:sleeps")])
"""


@pytest.mark.parametrize("killed", [0, 1], ids=["the scoring rank", "another rank"])
def test_no_verifier_outlives_a_job_of_which_one_rank_was_killed(killed):
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, "judging"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, **address, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        workers = [[int(pid) for pid in rank.stdout.readline().split()] for rank in ranks]
        assert [len(pids) for pids in workers] == [2, 0]
        ranks[killed].send_signal(signal.SIGKILL)
        if killed == 1:  # the launcher ends the others; the one that judges need not answer its signal
            ranks[0].send_signal(signal.SIGTERM)
        assert all(gone(pid) for pid in workers[0])
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
