"""The objective written plainly: full logits, torch's own log_softmax and autograd, loops over sequences."""

import math

import torch


def masked_log_softmax(logits, ids):
    return torch.log_softmax(logits.masked_fill(~ids, -torch.inf), dim=-1)


def at(table, targets):
    return table.gather(-1, targets[:, None]).squeeze(-1)


def divergence(kl, log_p, log_q, targets, ids):
    """Value whose autograd gradient is the estimator's, and the number that is reported."""
    lp, lq = log_p[:, ids], log_q[:, ids]
    p, q = lp.exp(), lq.exp()
    reverse = (p * (lp - lq)).sum(-1)
    here = ids[targets]
    safe = torch.where(here, targets, ids.nonzero()[0, 0])
    s = at(log_p, safe) - at(log_q, safe)
    if kl.estimator == "k2":
        out = 0.5 * s**2
    elif kl.estimator == "k3":
        out = torch.exp(-s) - 1 + s
    elif kl.estimator == "k1_reward":
        out = s
    elif kl.estimator == "vopd":
        coefficient = (s - reverse).detach()
        if kl.clamp is not None:
            coefficient = coefficient.clamp(-kl.clamp, kl.clamp)
        surrogate = coefficient * at(log_p, safe)
        out = reverse.detach() + surrogate - surrogate.detach()
    elif kl.estimator == "reverse":
        out = reverse
    elif kl.estimator == "forward":
        out = (q * (lq - lp)).sum(-1)
    elif kl.estimator == "jsd":
        w = kl.jsd_weight
        lm = torch.logsumexp(torch.stack([lq + math.log(w), lp + math.log(1 - w)]), dim=0)
        out = w * (q * (lq - lm)).sum(-1) + (1 - w) * (p * (lp - lm)).sum(-1)
    elif kl.estimator == "topk":
        top = torch.zeros_like(q, dtype=torch.bool).scatter_(1, lq.topk(min(kl.top_k, q.shape[1])).indices, True)
        out = torch.where(top, p * (lp - lq), 0).sum(-1)
        if bool((~top).any()):
            tail_p, tail_q = (t.masked_fill(top, -torch.inf).logsumexp(-1) for t in (lp, lq))
            out = out + tail_p.exp() * (tail_p - tail_q)
    if kl.clamp is not None:
        if kl.estimator == "k1_reward":
            out = out.clamp(-kl.clamp, kl.clamp)
        elif kl.estimator != "vopd":
            out = out.clamp(max=kl.clamp)
    return out if kl.one_sided else torch.where(here, out, 0.0)


def per_sequence(values, sequence, how):
    out = torch.zeros_like(values)
    for s in sequence.unique():
        mine = sequence == s
        out = torch.where(mine, getattr(values[mine], how)(), out)
    return out


def loss(
    hidden, head, batch, sampleable, shared, *,
    policy, kl=None, teacher_hidden=None, teacher_head=None, correction=None, temperature=1.0, teacher_temperature=None,
):  # fmt: skip
    """(loss, logprob, entropy, kl) in the inputs' type; rows of all-zero weight are dropped before anything is computed."""
    keep = (batch.policy_weight != 0) | (batch.kl_weight != 0) if batch.response is None else batch.response
    pick = lambda t: None if t is None else t[keep]  # noqa: E731
    h, targets, sequence = hidden[keep], batch.targets[keep], batch.sequence[keep]
    w, wk, advantage = pick(batch.policy_weight), pick(batch.kl_weight), pick(batch.advantages)
    log_pi = masked_log_softmax(h @ head.T / temperature, sampleable)
    logprob = at(log_pi, targets)
    entropy = -(log_pi.exp() * log_pi.masked_fill(~sampleable, 0)).sum(-1)
    old = logprob.detach() if batch.old_logprobs is None else pick(batch.old_logprobs)

    importance = torch.ones_like(logprob)
    if correction is not None and correction.mode != "none":
        gap = old - pick(batch.rollout_logprobs)
        importance = (gap if correction.mode == "token" else per_sequence(gap, sequence, "sum")).exp()
        if correction.mode == "sequence_mask":
            importance = torch.where(importance > correction.cap, 0.0, importance)
        importance = importance.clamp(max=correction.cap)
    on_kl = importance if correction is not None and correction.on_kl else torch.ones_like(importance)

    value = None
    weighted = torch.zeros_like(logprob) if policy is None else w * advantage * importance
    kl_total = 0.0
    if kl is not None:
        scored = (wk != 0).nonzero().flatten()
        log_p = masked_log_softmax(h[scored] @ head.T / temperature, shared)
        tau = temperature if teacher_temperature is None else teacher_temperature
        log_q = masked_log_softmax(teacher_hidden[keep][scored] @ teacher_head.T / tau, shared)
        value = torch.zeros_like(logprob).index_copy(0, scored, divergence(kl, log_p, log_q, targets[scored], shared))
        if kl.estimator == "k1_reward":
            cost = (wk * value * on_kl).detach()
            if kl.reward_horizon == "return_to_go":
                cost = torch.stack([cost[i:][sequence[i:] == sequence[i]].sum() for i in range(len(cost))])
            weighted = weighted - cost
        else:
            kl_total = (wk * on_kl.detach() * value).sum()
    log_ratio = logprob - old
    if policy is not None and policy.loss == "gspo":
        log_ratio = per_sequence(log_ratio, sequence, "mean")
    ratio, weighted = log_ratio.exp(), weighted.detach()
    if policy is None:
        per_token = -ratio * weighted
    else:
        clipped = ratio.clamp(1 - policy.clip_low, 1 + policy.clip_high)
        if policy.dual_clip is not None:
            ratio = torch.where(weighted < 0, ratio.clamp(max=policy.dual_clip), ratio)
        per_token = -torch.minimum(ratio * weighted, clipped * weighted)
    return per_token.sum() + kl_total, logprob, entropy, value, keep
