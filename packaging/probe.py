import os
import sys
import urllib.request as http
from pathlib import Path

token = os.environ.get("CLOVER_TOKEN") or Path(os.environ["CLOVER_TOKEN_FILE"]).read_text().partition("\n")[0].strip()
url = f"http://127.0.0.1:{sys.argv[2] if len(sys.argv) > 2 else 8080}/v2/health/{sys.argv[1]}"
http.urlopen(http.Request(url, headers={"Authorization": f"Bearer {token}"}), timeout=4)
