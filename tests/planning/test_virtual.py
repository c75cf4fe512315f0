"""The planner's bubble and passes in flight, held against a schedule that is played through; and when it advises them."""

import pytest

from vold_nemo.config.compose import compose
from vold_nemo.planning import activations, timing
from vold_nemo.planning.plan import fits, models_of, plan_stage
from vold_nemo.planning.search import _interleaved, assign, candidates


def played(pipeline: int, virtual: int, real: int) -> tuple[float, list[int]]:
    """Time of ``real`` micro-batches (forward 1, backward 2 a stage, dummies none) over their work, and the most forward passes
    that each stage holds: 1F1B as megatron-core's two schedules order it, nothing overlapped but stages."""
    count = real if virtual == 1 else -(-real // pipeline) * pipeline
    group = pipeline if virtual > 1 else count
    table = [(mb, c) for first in range(0, count, group) for c in range(virtual) for mb in range(first, first + group)]
    orders = []
    for rank in range(pipeline):
        warm = 2 * (pipeline - rank - 1) + (virtual - 1) * pipeline if virtual > 1 else pipeline - rank - 1
        warm = min(warm, len(table))
        forward = [("forward", mb, c) for mb, c in table]
        backward = [("backward", mb, virtual - 1 - c) for mb, c in table]
        steady = [one for pair in zip(forward[warm:], backward, strict=False) for one in pair]
        orders.append([*forward[:warm], *steady, *backward[len(table) - warm :]])
    done, clock, held, most = {}, [0.0] * pipeline, [0] * pipeline, [0] * pipeline
    while any(orders):
        for rank, order in enumerate(orders):
            while order:
                kind, mb, c = order[0]
                if kind == "forward":
                    need = (kind, mb, c, rank - 1) if rank else (kind, mb, c - 1, pipeline - 1) if c else None
                elif rank < pipeline - 1:
                    need = (kind, mb, c, rank + 1)
                else:
                    need = (kind, mb, c + 1, 0) if c < virtual - 1 else ("forward", mb, c, rank)
                if need is not None and need not in done:
                    break
                cost = (1 if kind == "forward" else 2) / virtual * (mb < real)
                clock[rank] = done[kind, mb, c, rank] = max(clock[rank], done.get(need, 0.0)) + cost
                held[rank] += 1 if kind == "forward" else -1
                most[rank] = max(most[rank], held[rank])
                del order[0]
    return max(clock) / (3 * real), most


@pytest.fixture(scope="module")
def paper():
    return compose(["experiment=paper_3b"])


@pytest.mark.parametrize("pipeline", [2, 4, 6])
@pytest.mark.parametrize("virtual", [1, 2, 3])
def test_bubble_and_passes_in_flight_are_those_of_the_schedule(paper, pipeline, virtual):
    config = assign(assign(paper, "parallel.pipeline", pipeline), "parallel.virtual", virtual)
    student = models_of(config).student  # 36 layers
    used = student.virtual(pipeline, virtual)
    for count in (1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 24):
        found, most = played(pipeline, used, count)
        planned = timing._bubble(config, student, count)
        if count <= pipeline or count % pipeline == 0:
            assert planned == pytest.approx(found)
        else:  # a last group with dummies in it meets the one before halfway
            assert found <= planned < 1.1 * found
        run = count if used == 1 else -(-count // pipeline) * pipeline
        assert most == [activations.in_flight(pipeline, stage, run, used) for stage in range(pipeline)]


def test_virtual_stages_are_advised_where_they_make_a_step_faster_and_fit(paper):
    models, advised = models_of(paper), set()
    for config in candidates(paper, models, "vold", 4):
        if config.parallel.pipeline == 1 or not fits(config, models, "vold", 4):
            continue
        plain = plan_stage(config, models, "vold", 4)
        changed, plan = _interleaved(config, plain, models, "vold", 4)
        advised.add(changed.parallel.virtual)
        assert plan.fits and (plan.time.step < plain.time.step) == (changed.parallel.virtual > 1)
    assert len(advised) > 1
    # Where crossing from stage to stage is all that counts
    slow = assign(assign(config, "cluster.network_gbs", 0.01), "cluster.link_gbs", 0.01)
    slow = assign(assign(slow, "parallel.pipeline", 2), "parallel.tensor", 1)
    assert _interleaved(slow, plan_stage(slow, models, "vold", 4), models, "vold", 4)[0].parallel.virtual == 1
