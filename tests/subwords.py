"""Tokenizers of subwords, made here; in each "international" is one token, and "interview" two."""

from __future__ import annotations

import string

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [*["the international inter"] * 9, *["view"] * 3]
WORDS = ("[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "inter", "international", "##view", "##views")


def byte_level(**options: object) -> PreTrainedTokenizerFast:
    """As GPT-2's."""
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=tokens, **options)


def metaspace(**options: object) -> PreTrainedTokenizerFast:
    """As SentencePiece's, with its normaliser."""
    tokens = Tokenizer(models.BPE(unk_token="<unk>"))
    tokens.normalizer = normalizers.NFKC()
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    letters = sorted({*string.printable, "é"} - {" "})
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=letters, special_tokens=["<unk>"])
    tokens.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="<unk>", **options)


def wordpiece(**options: object) -> PreTrainedTokenizerFast:
    """As uncased BERT's: lower-cased, without accents, closed by a token that is no end of its name."""
    parts = [*WORDS, *string.punctuation, "£", "é"]
    parts += [mark + each for mark in ("", "##") for each in string.ascii_lowercase + string.digits]
    tokens = Tokenizer(models.WordPiece({part: i for i, part in enumerate(parts)}, unk_token="[UNK]"))
    tokens.normalizer, tokens.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokens.decoder = decoders.WordPiece()
    tokens.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]", **options
    )
