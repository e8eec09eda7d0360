"""OpenAI's client asks a sentence embedder of your own: it finds the page of Python's help that answers a question.

The tokenizer and the vectors (latent semantic analysis) are made of Python's own help.  Needs the extra `steps`
(tokenizers), and for the client `pip install openai`.  In a copy of this folder:

    $ python make.py  # writes tokenizer.json and vectors.safetensors
    $ python -m clover serve . --carbon static:400  # leave it running; the rest in a second terminal
    $ python ask.py "raise an error when a condition is false"
    $ python batch.py  # all pages as work that can wait, in the grid's clean hours
"""

from pydoc_data.topics import topics

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

paragraphs = [part for text in topics.values() for part in text.split("\n\n") if len(part) > 80]
tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
tokenizer.normalizer = normalizers.Lowercase()
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
trainer = trainers.WordPieceTrainer(vocab_size=3000, special_tokens=["[PAD]", "[UNK]"], show_progress=False)
tokenizer.train_from_iterator(paragraphs, trainer)
tokenizer.save("tokenizer.json")

counts = np.zeros((tokenizer.get_vocab_size(), len(paragraphs)), np.float32)  # of tokens in paragraphs
for column, encoded in enumerate(tokenizer.encode_batch(paragraphs)):
    np.add.at(counts[:, column], encoded.ids, 1)
rarity = np.log(len(paragraphs) / (1 + (counts > 0).sum(axis=1, keepdims=True)))
torch.manual_seed(0)
u, s, _ = torch.svd_lowrank(torch.from_numpy(np.log1p(counts) * rarity), q=128)
save_file({"weight": (u * s * torch.from_numpy(rarity)).float().contiguous()}, "vectors.safetensors")
