import os
import sys
from pydoc_data.topics import topics

import numpy as np
from openai import OpenAI

client = OpenAI(base_url=os.environ.get("CLOVER_URL", "http://127.0.0.1:8080") + "/v1", api_key="none")


def embed(texts):
    reply = client.embeddings.with_raw_response.create(model="embedder", input=texts)
    return np.array([row.embedding for row in reply.parse().data]), reply.headers["clover-receipt"]


pages, _ = embed([text[:1000] for text in topics.values()])
(question,), receipt = embed(sys.argv[1:])
for page in np.argsort(pages @ question)[:-4:-1]:
    print(f"{list(topics)[page]}: {pages[page] @ question:.2f}")
print("receipt:", receipt)
