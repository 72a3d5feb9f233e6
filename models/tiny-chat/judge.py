"""Judges tiny-chat on heldout.json: `python judge.py [--temperature T] [--top-p P] [--seed S] [--show N]`.

heldout.json is a list of cases `{"skill": str, "dialog": [{"role": str, "content": str}, …], "judge": {…}}`. The dialog
ends with a user message; it is put into the Llama 2 chat format and the model says at most 200 new tokens. The answer is
the decoded text without leading and trailing white space. It is right when *every* rule holds. The two rules that
are always on:

  ends           the end token came within the 200 tokens
  no garbage     no run of 4 words (split at white space, compared exactly) occurs more than 2 times

The fields of `judge`; a field that is absent is no rule:

  must_contain      [str]    each occurs in the answer; case-sensitive
  must_not_contain  [str]    none occurs in the answer; case-sensitive
  contains_any      [[str]]  of each group at least one occurs in the answer; answer and strings in lower case
  lines             int      so many lines (split at "\\n") hold something else than white space
  only_emoji        true     every code point but U+0020, U+200D and U+FE0F is an emoji: U+2190..U+2BFF or U+1F000..U+1FAFF
  min_chars         int      at least so many code points in the answer
  max_chars         int      at most so many

A case of skill "reference" is one of the example dialogs of Meta's reference. The marks: per skill at least 90 % right at
temperature 0, and at least 80 % at temperature 0.6 with top_p 0.9; every reference case right at temperature 0.
"""

import argparse
import collections
import json
import os

HERE = os.path.dirname(os.path.abspath(__file__))
MAX_NEW_TOKENS = 200
GREEDY_MARK, SAMPLED_MARK = 0.90, 0.80


def is_emoji(char):
    return char in " \u200d\ufe0f" or 0x2190 <= ord(char) <= 0x2BFF or 0x1F000 <= ord(char) <= 0x1FAFF


def faults(rule, answer, ended):
    """The names of the rules that the answer breaks."""
    answer, out = answer.strip(), []
    words, lower = answer.split(), answer.lower()
    runs = collections.Counter(tuple(words[i : i + 4]) for i in range(len(words) - 3))
    checks = {
        "ends": ended,
        "no garbage": max(runs.values(), default=0) <= 2,
        "must_contain": all(s in answer for s in rule.get("must_contain", [])),
        "must_not_contain": not any(s in answer for s in rule.get("must_not_contain", [])),
        "contains_any": all(any(s.lower() in lower for s in group) for group in rule.get("contains_any", [])),
        "lines": "lines" not in rule or sum(bool(line.strip()) for line in answer.split("\n")) == rule["lines"],
        "only_emoji": not rule.get("only_emoji") or all(map(is_emoji, answer)),
        "min_chars": len(answer) >= rule.get("min_chars", 0),
        "max_chars": len(answer) <= rule.get("max_chars", len(answer)),
    }
    return [name for name, held in checks.items() if not held]


def main():
    import numpy as np
    import sentencepiece

    import chatformat
    import model
    import pth

    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=os.path.join(HERE, "consolidated.00.pth"))
    parser.add_argument("--params", default=os.path.join(HERE, "params.json"))
    parser.add_argument("--tokenizer", default=os.path.join(HERE, "tokenizer.model"))
    parser.add_argument("--heldout", default=os.path.join(HERE, "heldout.json"))
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", type=int, default=0, help="so many wrong answers per skill are printed")
    parser.add_argument("--only", help="one skill")
    args = parser.parse_args()

    cases = [c for c in json.load(open(args.heldout, encoding="utf-8")) if args.only in (None, c["skill"])]
    sp = sentencepiece.SentencePieceProcessor(model_file=args.tokenizer)
    params = json.load(open(args.params))
    w = {name: np.array(a) for name, a in pth.load(args.model).items()}
    prompts = [chatformat.prompt_tokens(sp, c["dialog"]) for c in cases]
    answers = model.generate(w, params, prompts, MAX_NEW_TOKENS, args.temperature, args.top_p, args.seed)

    right, total, shown = collections.Counter(), collections.Counter(), collections.Counter()
    for c, ids in zip(cases, answers):
        ended = ids[-1] == chatformat.EOS
        text = sp.decode(ids[:-1] if ended else ids)
        wrong = faults(c["judge"], text, ended)
        total[c["skill"]] += 1
        right[c["skill"]] += not wrong
        if wrong and shown[c["skill"]] < args.show:
            shown[c["skill"]] += 1
            print(f"--- {c['skill']}: {', '.join(wrong)}\n    asked:  {c['dialog'][-1]['content']!r}\n    wanted: {c['judge']['must_contain']}\n    said:   {text!r}")
    mark = GREEDY_MARK if args.temperature == 0 else SAMPLED_MARK
    for skill in total:
        share = right[skill] / total[skill]
        needed = 1.0 if skill == "reference" and args.temperature == 0 else mark
        print(f"{skill:>12} {right[skill]:4} of {total[skill]:4}  {100 * share:5.1f} %{'' if share >= needed else '  BELOW THE MARK'}")
    return all(right[s] / total[s] >= mark for s in total)


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
