"""Writes the token ids of texts, as SmolLM2's tokenizer has them, one after the other: python3 smollm2_ids.py MODEL.gguf TEXT... > ids.txt

The tokenizer is made of what the GGUF file says (byte-level BPE, digits one by one). Needs `pip install gguf tokenizers`.
"""

import sys
from pathlib import Path

from gguf import GGUFReader
from tokenizers import Tokenizer, models, pre_tokenizers


def tokenizer(path):
    fields = GGUFReader(path).fields
    assert fields["tokenizer.ggml.pre"].contents() == "smollm", "another way of cutting text"
    vocabulary = {piece: id for id, piece in enumerate(fields["tokenizer.ggml.tokens"].contents())}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return made


made = tokenizer(sys.argv[1])
text = "\n".join(Path(path).read_text() for path in sys.argv[2:])
ids = made.encode(text).ids
for start in range(0, len(ids), 24):
    print(*ids[start : start + 24])
