"""Llama 2 in JAX: Meta's math (RMSNorm in float32, interleaved RoPE pairs, SwiGLU), Meta's tensor names.

Shapes: B rows, T positions, D dim, H heads, K head_dim, V vocabulary. Weights are [out, in].
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

THETA = 10000.0


def ffn_dim(params):
    hidden = int(2 * 4 * params["dim"] / 3)
    if params.get("ffn_dim_multiplier"):
        hidden = int(params["ffn_dim_multiplier"] * hidden)
    return -(-hidden // params["multiple_of"]) * params["multiple_of"]


def shapes(params, vocab_size):
    """name -> shape, in the order of Meta's files."""
    d, f = params["dim"], ffn_dim(params)
    kv = d // params["n_heads"] * (params.get("n_kv_heads") or params["n_heads"])
    out = {"tok_embeddings.weight": (vocab_size, d), "norm.weight": (d,), "output.weight": (vocab_size, d)}
    for n in range(params["n_layers"]):
        layer = {
            "attention.wq": (d, d), "attention.wk": (kv, d), "attention.wv": (kv, d), "attention.wo": (d, d),
            "feed_forward.w1": (f, d), "feed_forward.w2": (d, f), "feed_forward.w3": (f, d),
            "attention_norm": (d,), "ffn_norm": (d,),
        }
        out.update({f"layers.{n}.{name}.weight": shape for name, shape in layer.items()})
    return out


def rms_norm(x, weight, eps):
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def halves(weight, heads):
    """wq or wk [H*K, D] with the even rows of each head first.

    RoPE turns neighbours (2i, 2i+1). Reordering the rows of both wq and wk alike leaves q·k as it is and lets the
    rotation below work on two contiguous halves, which is far quicker here. The weights as stored keep Meta's order.
    """
    grouped = weight.reshape(heads, -1, 2, weight.shape[1])
    return grouped.transpose(0, 2, 1, 3).reshape(weight.shape)


def rotate(x, positions):
    """RoPE on x [B, T, H, K] at positions [B, T] (or [1, T]), of queries or keys made with `halves`."""
    k = x.shape[-1]
    frequencies = THETA ** (-np.arange(0, k, 2, dtype=np.float32) / k)
    angle = positions[..., None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
    even, odd = x[..., : k // 2], x[..., k // 2 :]
    return jnp.concatenate([even * cos - odd * sin, even * sin + odd * cos], axis=-1)


def block(w, n, params, x, positions, attend):
    """One layer on x [B, T, D]; `attend(n, q, k, v)` is [B, T, H, K] and knows about the cache and the mask."""
    name, eps = f"layers.{n}.", params["norm_eps"]
    b, t, d = x.shape
    heads, kv_heads = params["n_heads"], params.get("n_kv_heads") or params["n_heads"]
    h = rms_norm(x, w[name + "attention_norm.weight"], eps)
    q = rotate((h @ halves(w[name + "attention.wq.weight"], heads).T).reshape(b, t, heads, -1), positions)
    k = rotate((h @ halves(w[name + "attention.wk.weight"], kv_heads).T).reshape(b, t, kv_heads, -1), positions)
    v = (h @ w[name + "attention.wv.weight"].T).reshape(b, t, kv_heads, -1)
    x = x + attend(n, q, k, v).reshape(b, t, d) @ w[name + "attention.wo.weight"].T
    h = rms_norm(x, w[name + "ffn_norm.weight"], eps)
    gate = jax.nn.silu(h @ w[name + "feed_forward.w1.weight"].T) * (h @ w[name + "feed_forward.w3.weight"].T)
    return x + gate @ w[name + "feed_forward.w2.weight"].T


def attention(q, k, v, mask):
    """q [B, T, H, K], k and v [B, S, Hkv, K], mask broadcast to [B, H, T, S]."""
    repeats = q.shape[2] // k.shape[2]
    if repeats > 1:
        k, v = jnp.repeat(k, repeats, axis=2), jnp.repeat(v, repeats, axis=2)
    scores = jnp.einsum("bthk,bshk->bhts", q, k) / np.sqrt(q.shape[-1]).astype(np.float32)
    return jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1), v)


def forward(w, params, tokens):
    """Logits [B, T, V] of tokens [B, T]; rows start at position 0, what pads them stands at the end."""
    b, t = tokens.shape
    positions = jnp.arange(t)[None]
    causal = jnp.tril(jnp.ones((t, t), bool))
    x = w["tok_embeddings.weight"][tokens]
    for n in range(params["n_layers"]):
        x = block(w, n, params, x, positions, lambda n, q, k, v: attention(q, k, v, causal))
    return rms_norm(x, w["norm.weight"], params["norm_eps"]) @ w["output.weight"].T


# --- generation, for the judge -----------------------------------------------------------------------------------------

@functools.partial(jax.jit, static_argnames=("frozen", "room", "sampled"))
def _generate(w, frozen, tokens, lengths, room, sampled, temperature, top_p, key):
    params = dict(frozen)
    b, t = tokens.shape
    total = t + room
    heads = params.get("n_kv_heads") or params["n_heads"]
    # keys and values of each layer apart: one array of all would be copied at every step
    cache = [jnp.zeros((b, total, heads, params["dim"] // params["n_heads"])) for _ in range(2 * params["n_layers"])]
    rows = jnp.arange(b)

    def run(cache, tokens, positions):
        mask = (jnp.arange(total)[None, None] <= positions[:, :, None])[:, None]
        held = list(cache)

        def attend(n, q, k, v):
            held[2 * n] = held[2 * n].at[rows[:, None], positions].set(k)
            held[2 * n + 1] = held[2 * n + 1].at[rows[:, None], positions].set(v)
            return attention(q, held[2 * n], held[2 * n + 1], mask)

        x = w["tok_embeddings.weight"][tokens]
        for n in range(params["n_layers"]):
            x = block(w, n, params, x, positions, attend)
        return held, rms_norm(x, w["norm.weight"], params["norm_eps"])

    def pick(hidden, key):
        logits = hidden @ w["output.weight"].T
        if not sampled:
            return jnp.argmax(logits, axis=-1)
        probs = jax.nn.softmax(logits / temperature, axis=-1)
        order = jnp.argsort(-probs, axis=-1)
        ranked = jnp.take_along_axis(probs, order, axis=-1)
        ranked = jnp.where(jnp.cumsum(ranked, axis=-1) - ranked > top_p, 0.0, ranked)
        return jnp.take_along_axis(order, jax.random.categorical(key, jnp.log(ranked))[:, None], axis=-1)[:, 0]

    cache, hidden = run(cache, tokens, jnp.broadcast_to(jnp.arange(t), (b, t)))
    out = jnp.zeros((b, room), jnp.int32).at[:, 0].set(pick(hidden[rows, lengths - 1], jax.random.fold_in(key, 0)))

    def go_on(state):
        step, out, _ = state
        return (step < room) & ~jnp.all(jnp.any(out == 2, axis=1))

    def advance(state):
        step, out, cache = state
        cache, hidden = run(cache, out[rows, step - 1][:, None], (lengths + step - 1)[:, None])
        return step + 1, out.at[:, step].set(pick(hidden[:, 0], jax.random.fold_in(key, step))), cache

    return jax.lax.while_loop(go_on, advance, (1, out, cache))[1]


def generate(w, params, prompts, room=200, temperature=0.0, top_p=0.9, seed=0, rows=32):
    """Up to `room` new ids per prompt (lists of ids); the end token is kept when it came."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers = [None] * len(prompts)
    for start in range(0, len(order), rows):
        batch = order[start : start + rows]
        width = -(-max(len(prompts[i]) for i in batch) // 128) * 128
        tokens, lengths = np.zeros((rows, width), np.int32), np.ones(rows, np.int32)
        for r, i in enumerate(batch):
            tokens[r, : len(prompts[i])], lengths[r] = prompts[i], len(prompts[i])
        for r in range(len(batch), rows):  # fill up with a copy, so that idle rows end when a real one does
            tokens[r], lengths[r] = tokens[0], lengths[0]
        out = np.asarray(_generate(w, tuple(params.items()), tokens, lengths, room, temperature > 0, np.float32(max(temperature, 1e-6)),
                                   np.float32(top_p), jax.random.PRNGKey(seed * 100003 + start)))
        for r, i in enumerate(batch):
            ids = out[r].tolist()
            answers[i] = ids[: ids.index(2) + 1] if 2 in ids else ids
    return answers
