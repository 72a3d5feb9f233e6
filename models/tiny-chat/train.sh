#!/usr/bin/env bash
# Makes tiny-chat anew, from nothing but this folder: held-out prompts, tokenizer, model, figures.
# What it makes stays in build/ until it has been judged; `train.sh --install` then puts it beside this script.
set -euo pipefail
cd "$(dirname "$0")"
[ -x .venv/bin/python ] || python3 -m venv .venv
.venv/bin/pip install -q -r requirements.txt
mkdir -p build
.venv/bin/python heldout.py build/heldout.json
.venv/bin/python train_tokenizer.py build/tokenizer.model
.venv/bin/python train.py params.json build/tokenizer.model build/consolidated.00.pth
for how in "--temperature 0" "--temperature 0.6 --top-p 0.9"; do
  echo "judged with $how"
  .venv/bin/python judge.py --model build/consolidated.00.pth --tokenizer build/tokenizer.model --heldout build/heldout.json $how || true
done
if [ "${1:-}" = --install ]; then
  cp build/heldout.json build/tokenizer.model build/consolidated.00.pth .
fi
