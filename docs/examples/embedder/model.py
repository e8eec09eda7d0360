from safetensors.torch import load_file
from torch import nn


class MeanOfTokens(nn.Module):
    def __init__(self, vectors):
        super().__init__()
        self.vectors = nn.Embedding.from_pretrained(vectors)

    def forward(self, input_ids, attention_mask):
        total = (self.vectors(input_ids) * attention_mask.unsqueeze(-1)).sum(dim=1)
        return nn.functional.normalize(total, dim=1)


def load(variant, folder):
    return MeanOfTokens(load_file(folder / variant.weights)["weight"]).eval()
