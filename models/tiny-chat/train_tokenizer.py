"""Trains tokenizer.model on the corpus: a SentencePiece BPE with the settings of Llama 2's, and a far smaller vocabulary.

A small vocabulary is the choice that lets a small model copy: every name is cut into pieces that the model has seen
copied thousands of times. Emoji and accented letters get a piece each; whatever else comes is spelled in bytes.
"""

import io
import sys

import sentencepiece

import chatformat
import corpus
import lexicon

VOCAB_SIZE = 1024
SEED = 101
DIALOGS = 24_000


def lines():
    for messages, _ in corpus.dialogs(SEED, DIALOGS, mix=corpus.FOR_TOKENIZER):
        for user, answer in chatformat.turns(messages):
            # a newline is not in the training text: as in Llama's tokenizer it is the byte piece <0x0A>
            yield from (line for line in f"[INST] {user} [/INST] {answer}".split("\n") if line)


def train(path):
    required = "".join(sorted({c for kind in lexicon.EMOJI.values() for c in kind.replace(" ", "")})) + "".join(lexicon.ACCENTS.values())
    required += "".join(chr(c) for c in range(33, 127))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines(), model_writer=model, model_type="bpe", vocab_size=VOCAB_SIZE, byte_fallback=True,
        normalization_rule_name="identity", add_dummy_prefix=True, remove_extra_whitespaces=False, split_digits=True,
        allow_whitespace_only_pieces=True, max_sentencepiece_length=16, character_coverage=1.0, required_chars=required,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1, num_threads=1, shuffle_input_sentence=False, minloglevel=2,
    )
    with open(path, "wb") as file:
        file.write(model.getvalue())


if __name__ == "__main__":
    train(sys.argv[1])
