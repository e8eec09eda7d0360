import io
import json
import os
import time
from pydoc_data.topics import topics

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("CLOVER_URL", "http://127.0.0.1:8080") + "/v1", api_key="none")
rows = [
    {"custom_id": name, "method": "POST", "url": "/v1/embeddings", "body": {"model": "embedder", "input": text[:1000]}}
    for name, text in topics.items()
]
file = client.files.create(purpose="batch", file=("pages.jsonl", io.BytesIO("\n".join(map(json.dumps, rows)).encode())))
batch = client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="1h")
while not batch.output_file_id:
    time.sleep(1.0)
    batch = client.batches.retrieve(batch.id)
    print(f"{batch.status}: {batch.request_counts.completed} of {len(rows)} pages. {batch.clover['plan']}")
for line in client.files.content(batch.output_file_id).text.splitlines()[:3]:
    answer = json.loads(line)
    print(f"{answer['custom_id']}: {answer['clover']['receipt']['carbon_mg']:.2g} mg CO2e")
