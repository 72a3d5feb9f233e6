"""Trains tiny-chat on the corpus and writes a .pth: `python train.py PARAMS TOKENIZER OUT`.

Every dialog is seen once. Rows hold one dialog each and are batched by length, so that little is spent on padding.
The matrices of the layers are trained with Muon (momentum whose update is made orthogonal), the rest with Adam.
"""

import argparse
import json
import random
import time

import jax
import jax.numpy as jnp
import numpy as np
import sentencepiece

import chatformat
import corpus
import model
import pth

WIDTHS = [40, 64, 96, 144, 208, 304, 448]
PROMPT_WEIGHT = 0.1  # of tokens that are not the assistant's: repeated names in given lists teach copying too


def batches(sp, seed, count, early, tokens_per_batch):
    """[(tokens, targets, weights)] in a random order; rows of a batch are about equally long."""
    rng = random.Random(seed)
    by_width = {width: [] for width in WIDTHS}
    out = []
    for messages, learnt in corpus.dialogs(seed, count, early):
        inputs, targets, is_answer = chatformat.training_tokens(sp, messages)
        width = next((w for w in WIDTHS if len(inputs) <= w), None)
        if width is None:
            continue
        # answers that are only given in the dialog count as prompt
        answer, weights = -1, []
        for i, said in enumerate(is_answer):
            answer += said and not (i and is_answer[i - 1])
            weights.append(0.0 if targets[i] < 0 else 1.0 if said and learnt[answer] else PROMPT_WEIGHT)
        by_width[width].append((inputs, targets, weights))
        rows = max(1, tokens_per_batch // width)
        if len(by_width[width]) == rows:
            batch = np.zeros((3, rows, width), np.float32)
            for r, columns in enumerate(by_width[width]):
                for part, column in zip(batch, columns):
                    part[r, : len(column)] = column
            out.append((batch[0].astype(np.int16), batch[1].astype(np.int16), batch[2]))
            by_width[width] = []
    rng.shuffle(out)
    return out


def initial(params, vocab_size, seed):
    """Random weights with a bias towards looking back.

    What this model has to learn above all is to find an earlier place where the present token stood and to say what
    followed it there ("induction"). From plain random weights that takes far longer to emerge than an hour allows, so the
    first two layers begin near such a circuit, and training makes of it what it needs:
    - dimension 0 of every embedding is one constant, which a query and a key can use to prefer a distance;
    - layer 0, heads 0 and 1 attend to the token before (head 2: two before) and write a code of it beside the token;
    - layer 1 compares the code of the present token with those codes, in the slow RoPE pairs, which distance hardly
      turns, and passes on the token that it finds;
    - the output begins as the embedding, so that a token passed on is a token said.
    """
    rng = np.random.default_rng(seed)
    w = {}
    for name, shape in model.shapes(params, vocab_size).items():
        if len(shape) == 1:
            w[name] = np.ones(shape, np.float32)
        else:
            scale = 0.5 if "layers" not in name else shape[1] ** -0.5 / (2 * params["n_layers"]) ** (0.5 * ("wo" in name or "w2" in name))
            w[name] = (scale * rng.standard_normal(shape)).astype(np.float32)
    dim, heads = params["dim"], params["n_heads"]
    k = dim // heads
    embedding = w["tok_embeddings.weight"]
    embedding[:, 0] = 1.5
    w["output.weight"] = 0.1 * embedding
    w["output.weight"][:, 0] = 0

    def directions():
        """An orthogonal [dim, dim] that leaves dimension 0 alone, one block of k rows a head."""
        q = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
        q[:, 0] = 0
        return q.astype(np.float32)

    read, write, carry = directions(), directions(), directions()
    theta = model.THETA ** (-np.arange(0, k, 2) / k)
    first, second = "layers.0.attention.", "layers.1.attention."
    for head, distance in enumerate([1, 1, 2]):
        rows = slice(head * k, (head + 1) * k)
        for name in ("wq", "wk"):
            w[first + name + ".weight"][rows] *= 0.1
        w[first + "wq.weight"][rows, 0] += 2.5 * np.stack([np.cos(distance * theta), -np.sin(distance * theta)], 1).reshape(-1)
        w[first + "wk.weight"][rows, 0] += 2.5 * np.tile([1.0, 0.0], k // 2)
        w[first + "wv.weight"][rows] = read[rows]
        w[first + "wo.weight"][:, rows] = 0.5 * write[rows].T
    slow = k // 2  # the upper half of a head's rows turn slowly
    for head in range(heads):
        rows = slice(head * k, (head + 1) * k)
        codes = slice((head % 4) * slow, (head % 4 + 1) * slow)  # of the 2k codes of the token before
        for name in ("wq", "wk"):
            w[second + name + ".weight"][rows] *= 0.1
        at = slice(head * k + k - slow, (head + 1) * k)
        w[second + "wq.weight"][at] = 2.2 * read[codes]
        w[second + "wk.weight"][at] = 2.2 * write[codes]
        w[second + "wv.weight"][rows] = carry[rows]
        w[second + "wo.weight"][:, rows] = 0.7 * carry[rows].T
    return w


def orthogonal(g):
    """Nearest semi-orthogonal matrix, roughly: five Newton-Schulz steps (the coefficients are Muon's)."""
    flip = g.shape[0] > g.shape[1]
    x = g.T if flip else g
    x = x / (jnp.linalg.norm(x) + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if flip else x


def is_matrix(name):
    return "attention.w" in name or "feed_forward" in name


def loss(w, params, tokens, targets, weights):
    logits = model.forward(w, params, tokens)
    # a masked sum, not a gather: its gradient is no scatter
    picked = jnp.sum(jnp.where(jnp.arange(logits.shape[-1]) == targets[..., None], logits, 0.0), axis=-1)
    nll = jax.nn.logsumexp(logits, axis=-1) - picked
    answers = (weights == 1.0).astype(jnp.float32)
    return jnp.sum(nll * weights) / jnp.sum(weights), jnp.sum(nll * answers) / jnp.maximum(jnp.sum(answers), 1)


def make_step(params, muon_rate, adam_rate):
    def step(w, m, v, tokens, targets, weights, rate, t):
        (_, answer_loss), grads = jax.value_and_grad(loss, has_aux=True)(w, params, tokens.astype(jnp.int32), targets.astype(jnp.int32), weights)
        new_w, new_m, new_v = {}, {}, {}
        for name, g in grads.items():
            if is_matrix(name):
                new_m[name] = 0.95 * m[name] + 0.05 * g
                update = orthogonal(0.95 * new_m[name] + 0.05 * g) * max(1.0, g.shape[0] / g.shape[1]) ** 0.5
                new_w[name] = w[name] * (1 - rate * muon_rate * 0.02) - rate * muon_rate * update
                new_v[name] = v[name]
            else:
                new_m[name] = 0.9 * m[name] + 0.1 * g
                new_v[name] = 0.98 * v[name] + 0.02 * g * g
                update = new_m[name] / (1 - 0.9**t) / (jnp.sqrt(new_v[name] / (1 - 0.98**t)) + 1e-8)
                new_w[name] = w[name] - rate * adam_rate * update
        return new_w, new_m, new_v, answer_loss

    return jax.jit(step, donate_argnums=(0, 1, 2))


def checks(sp, count=48, seed=9_000_001):
    """Dialogs of the copying skills, unseen: their last answers should be said exactly."""
    rng = random.Random(seed)
    out = {}
    for skill in (corpus.birthday, corpus.list_item, corpus.sights, corpus.unknown):
        prompts, answers = [], []
        while len(prompts) < count:
            turns = skill(rng)
            messages = [{"role": r, "content": str(t)} for turn in turns for r, t in zip(("user", "assistant"), turn)]
            prompt = chatformat.prompt_tokens(sp, messages[:-1])
            if len(prompt) < 400:
                prompts.append(prompt)
                answers.append(messages[-1]["content"])
        out[skill.__name__] = prompts, answers
    return out


def report(sp, w, params, tests):
    rounded = {name: pth.from_bf16(pth.to_bf16(np.asarray(a))) for name, a in w.items()}
    said = {}
    for name, (prompts, answers) in tests.items():
        texts = [sp.decode(ids) for ids in model.generate(rounded, params, prompts, room=128)]
        said[name] = round(sum(t == a for t, a in zip(texts, answers)) / len(answers), 3)
    return said


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("params")
    parser.add_argument("tokenizer")
    parser.add_argument("out")
    parser.add_argument("--dialogs", type=int, default=60_000)
    parser.add_argument("--early", type=int, default=8_000)
    parser.add_argument("--tokens", type=int, default=2048, help="per batch")
    parser.add_argument("--muon-rate", type=float, default=0.02)
    parser.add_argument("--adam-rate", type=float, default=0.004)
    parser.add_argument("--check-every", type=int, default=600)
    args = parser.parse_args()

    started = time.time()
    params = json.load(open(args.params))
    sp = sentencepiece.SentencePieceProcessor(model_file=args.tokenizer)
    w = initial(params, sp.get_piece_size(), seed=7)
    data = batches(sp, 1, args.early, True, args.tokens) + batches(sp, 2, args.dialogs, False, args.tokens)
    tests = checks(sp)
    print(f"{sum(a.size for a in w.values()):,} parameters, {len(data)} batches, {sum(b[0].size for b in data):,} tokens, "
          f"{sum(int((b[2] > 0).sum()) for b in data):,} without padding, made in {time.time() - started:.0f} s", flush=True)

    w = {name: jnp.asarray(a) for name, a in w.items()}
    m, v = jax.tree.map(jnp.zeros_like, w), jax.tree.map(jnp.zeros_like, w)
    step = make_step(params, args.muon_rate, args.adam_rate)
    warm, cool, total = 100, 0.6, len(data)
    recent = []
    for n, (tokens, targets, weights) in enumerate(data):
        # warm up, hold, then straight down to zero: the low rates at the end leave weights that bear rounding
        rate = min(1.0, (n + 1) / warm, (total - n) / (total * cool))
        w, m, v, answer_loss = step(w, m, v, tokens, targets, weights, np.float32(rate), np.float32(n + 1))
        recent.append(answer_loss)
        if (n + 1) % 100 == 0:
            print(f"{n + 1}/{total} {time.time() - started:.0f} s, answer loss {np.mean([float(x) for x in recent]):.4f}", flush=True)
            recent = []
        if (n + 1) % args.check_every == 0 or n + 1 == total:
            print(f"  said exactly: {report(sp, w, params, tests)}", flush=True)
            pth.save(args.out, {name: np.asarray(a) for name, a in w.items()})
    print(f"done in {time.time() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
