# A script as anybody would write it: it knows nothing of Countersign.
import sys

import requests

answer = requests.get(sys.argv[1], timeout=20)
print(answer.status_code, answer.json()["caller"])
