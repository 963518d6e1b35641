"""Attention written out in NumPy and float64: what every form of it is compared with."""

import numpy as np


def exact_attention(q, k, v, segment_ids, rule, causal=True, sinks=None):
    """As `extraction.models.attention.attend` defines it: float64 [B, T, H, Dh], with or without causality."""
    q, k, v = (np.asarray(x).astype(np.float64) for x in (q, k, v))
    group = q.shape[2] // k.shape[2]
    k, v = (np.repeat(x, group, axis=2) for x in (k, v))
    scores = np.einsum("bthd,bshd->bhts", q, k) * rule.scale
    if rule.alibi:
        import torch
        from transformers.models.bloom.modeling_bloom import build_alibi_tensor

        slopes = build_alibi_tensor(torch.ones(1, 2), q.shape[2], torch.float64).numpy()[:, 0, 1]
        scores = scores + slopes[None, :, None, None] * np.arange(k.shape[1])[None, None, None, :]
    if rule.softcap is not None:
        scores = rule.softcap * np.tanh(scores / rule.softcap)
    back = np.arange(q.shape[1])[:, None] - np.arange(q.shape[1])[None, :]
    seen = np.ones(back.shape, bool) if not causal else back >= 0
    if rule.window is not None:
        seen = seen & (np.abs(back) < rule.window)
    seen = np.broadcast_to(seen, (len(q), 1, *back.shape))
    if segment_ids is not None:
        same = (segment_ids[:, :, None] == segment_ids[:, None, :]) & (segment_ids > 0)[:, None, :]
        seen = seen & same[:, None]
    scores = np.where(seen, scores, -1e30)
    if sinks is not None:
        sink = np.asarray(sinks, np.float64)[None, :, None, None]
        scores = np.concatenate([scores, np.broadcast_to(sink, (*scores.shape[:-1], 1))], axis=-1)
        v = np.concatenate([v, np.zeros_like(v[:, :1])], axis=1)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("bhts,bshd->bthd", weights / weights.sum(axis=-1, keepdims=True), v)


def relative_error(ours, theirs):
    ours, theirs = (np.asarray(x).astype(np.float64) for x in (ours, theirs))
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
