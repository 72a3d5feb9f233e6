"""The Llama 2 chat format: which token ids the model sees for a dialog, and which of them it is trained to say.

Each turn is encoded by itself, `<s>` + "[INST] {user} [/INST] {answer} " + `</s>`; the last user message ends at
"[/INST]". The system prompt goes into the first user message. Text is stripped as Python does.
"""

BOS, EOS = 1, 2


def turns(dialog):
    """[(user, answer or None), …] with the system prompt merged into the first user message."""
    messages = [dict(m) for m in dialog]
    if messages[0]["role"] == "system":
        system, first = messages[0]["content"], messages[1]["content"]
        messages = [{"role": "user", "content": f"<<SYS>>\n{system}\n<</SYS>>\n\n{first}"}] + messages[2:]
    answers = [m["content"] for m in messages[1::2]] + [None] * (len(messages) % 2)
    return [(m["content"].strip(), a if a is None else a.strip()) for m, a in zip(messages[::2], answers)]


def prompt_tokens(sp, dialog):
    """The ids that `chat_completion` feeds: the dialog ends with a user message."""
    ids = []
    for user, answer in turns(dialog):
        if answer is None:
            ids += [BOS] + sp.encode(f"[INST] {user} [/INST]")
        else:
            ids += [BOS] + sp.encode(f"[INST] {user} [/INST] {answer} ") + [EOS]
    return ids


def training_tokens(sp, dialog):
    """(inputs, targets, is_answer) of a dialog whose every user message is answered.

    The format puts a space between an answer and `</s>`. The model is taught to stop right after the answer, without
    that space, so that what it says has no blank at its end; the space stays in the input of later turns, where the
    format puts it. So targets are not just the inputs moved by one.
    """
    inputs, targets, is_answer = [], [], []
    for user, answer in turns(dialog):
        head = [BOS] + sp.encode(f"[INST] {user} [/INST]")
        whole = [BOS] + sp.encode(f"[INST] {user} [/INST] {answer}")
        spaced = [BOS] + sp.encode(f"[INST] {user} [/INST] {answer} ") + [EOS]
        assert whole[: len(head)] == head and spaced[: len(whole)] == whole and len(spaced) == len(whole) + 2
        inputs += spaced
        targets += whole[1:] + [EOS, -1, -1]  # after the space and after </s>: nothing to learn
        is_answer += [False] * (len(head) - 1) + [True] * (len(whole) - len(head) + 1) + [False, False]
    return inputs, targets, is_answer
