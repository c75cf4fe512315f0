"""A rehearsal in the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

GIB = 2**30
SHOWN = 4  # holders of a peak
WAITS = 8


def lines(found: dict[str, Any]) -> Iterator[str]:
    """``found`` as :func:`account.account` has it; holders are shown of the largest peak and of those that are planned."""
    place = ", ".join(f"{name} {rank}" for name, rank in found["place"].items())
    yield (
        f"rehearsed: {found['experiment']} on {found['cluster']}, {found['stage']}, rank {found['rank']} of {found['world']}"
        f"{f' ({place})' if place else ''}; {found['layers']} layers{', apex' if found.get('apex') else ''}; "
        f"{found['processor_seconds']:.0f} processor seconds"
    )
    batches, tokens = found["micro_batches"], found["tokens"]
    if files := found.get("files"):  # of an export
        yield (
            f"  {files['read_bytes'] / 1e9:,.2f} GB read from {files['read']} files, {files['written_bytes'] / 1e9:,.2f} GB "
            f"written to {files['written']} (the largest {files['largest'] / 1e9:.2f} GB), "
            f"{files['carried_bytes'] / 1e9:.2f} GB of them carried from file to file; nothing was computed, no number is a "
            "measurement"
        )
        at = max(found["phases"], key=lambda row: row["host_peak_bytes"])
        yield f"  host memory: at most {at['host_peak_bytes'] / GIB:.2f} GiB ({at['phase']})"
    else:
        yield (
            f"  {batches['run']} of {batches['planned']} micro-batches run ({tokens['run']:,} of {tokens['planned']:,} tokens, "
            "padding included); nothing was computed, no number is a measurement"
        )
    yield ""
    yield from _memory(found)
    yield ""
    yield from _work(found)
    yield from _collectives(found)
    yield from _waits(found)
    groups = found["groups"]
    yield (
        f"groups: {groups['of_this_rank']} of this rank ({groups['made_in_the_world']} in the world); gloo in "
        f"{groups['gloo']}, at most {groups['gloo_peers']:,} connections, {groups.get('gloo_at_once', 0):,} of them when it is "
        f"made; NCCL communicators: {len(groups['nccl_used'])}"
    )
    if found["violations"]:
        yield ""
        yield f"{len(found['violations'])} violation(s)"
        yield from (f"  {one['kind']}: {one['what']} ({one['place']})" for one in found["violations"])
    else:
        yield "no violation"


def _memory(found: dict[str, Any]) -> Iterator[str]:
    kind = "host memory, GiB" if found.get("memory") == "host" else "memory, GiB"
    yield f"{kind:<18}{'peak':>9}{'planned':>9}{'':>8}   held by"
    largest = max((row["peak_bytes"] for row in found["phases"]), default=0)
    for row in found["phases"]:
        planned, peak = row["planned_bytes"], row["peak_bytes"]
        beside = f"{planned / GIB:>9.2f}{peak / planned - 1:>+8.1%}" if planned else f"{'':>17}"
        yield f"  {row['phase']:<16}{peak / GIB:>9.2f}{beside}"
        if planned or peak == largest:
            for holder in row["holders"][:SHOWN]:
                yield f"{'':>38}{holder['bytes'] / GIB:>7.2f}  {holder['place']} (made in {holder['made_in']})"
    for row in found.get("host", ()):  # of a training stage, whose memory above is the device's
        planned, peak = row["planned_bytes"], row["peak_bytes"]
        parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in row["planned_parts"].items())
        yield f"  {row['phase'] + ', host':<16}{peak / GIB:>9.2f}{planned / GIB:>9.2f}{peak / planned - 1:>+8.1%}   {parts}"


def _work(found: dict[str, Any]) -> Iterator[str]:
    yield f"{'work':<18}{'launches':>10}{'TFLOP':>10}{'waits':>7}{'s':>9}{'planned':>9}   kinds"
    for row in found["phases"]:
        seconds = found["seconds"].get(row["phase"], {})
        flops = Counter(row["flops"])
        if not row["launches"]:
            continue
        kinds = ", ".join(f"{name} {amount / 1e12:.1f}" for name, amount in flops.most_common(3))
        time = seconds.get("work", 0.0) + seconds.get("links", 0.0)
        planned = f"{seconds['planned']:>9.1f}" if "planned" in seconds else f"{'':>9}"
        done = f"{row['launches']:>10,}{sum(flops.values()) / 1e12:>10.1f}{row['waits']:>7}"
        yield f"  {row['phase']:<16}{done}{time:>9.1f}{planned}   {kinds}"
    if found["seconds"]:
        yield "  s: from FLOPs, bytes and the rates of cluster.*, for all micro-batches, nothing overlapped; not measured"


def _collectives(found: dict[str, Any]) -> Iterator[str]:
    if not found["collectives"]:
        return
    yield f"{'collectives':<18}{'calls':>7}{'GB':>9}   over"
    for one in sorted(found["collectives"], key=lambda one: -(one["bytes"] or 0)):
        size = f"{one['bytes'] / 1e9:>9.3f}" if one["bytes"] is not None else f"{'':>9}"
        where = {"node": "inside a node", "network": "between nodes"}.get(one["link"], "objects")
        what = f"{one['operation'].strip('_')} of {one['size']} ranks, {where}"
        yield f"  {one['phase']:<16}{one['calls']:>7,}{size}   {what} ({one['group'].lower()})"


def _waits(found: dict[str, Any]) -> Iterator[str]:
    if not found["waits"]:
        return
    run = found["micro_batches"]["run"]
    yield f"{'the host waits':<18}{'times':>7}   for ({run} micro-batches were run)"
    for one in found["waits"][:WAITS]:
        yield f"  {one['phase']:<16}{one['count']:>7}   {one['what']}, {one['place']}"
