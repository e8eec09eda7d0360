import os
import sys
import urllib.request as http

url = f"http://127.0.0.1:8080/v2/health/{sys.argv[1]}"
http.urlopen(http.Request(url, headers={"Authorization": f"Bearer {os.environ['CLOVER_TOKEN']}"}), timeout=4)
