"""python -m bertc.serve.http.knock: requests to a server that counts what they cost it. A process of its own, of Python alone.

Read from stdin: a line of JSON (url, path, requests, clients, seconds), then the body. Written: how many were answered.
"""

from __future__ import annotations

import http.client
import itertools
import json
import sys
import threading
import time
import urllib.parse


def main() -> None:
    """Send them; exit 1 with the reason at the first that is not answered with 200."""
    asked = json.loads(sys.stdin.buffer.readline())
    body = sys.stdin.buffer.read()
    address = urllib.parse.urlsplit(asked["url"]).netloc
    ends = time.monotonic() + asked["seconds"]
    numbers, answered = itertools.count(), itertools.count()
    failed: list[str] = []

    def client() -> None:
        connection = http.client.HTTPConnection(address, timeout=60)
        try:
            while not failed and next(numbers) < asked["requests"] and time.monotonic() < ends:
                connection.request("POST", asked["path"], body, {"content-type": "application/json"})
                answer = connection.getresponse()
                said = answer.read()
                if answer.status != 200:
                    failed.append(f"{answer.status} {said[:200].decode(errors='replace')}")
                    return
                next(answered)
        except (OSError, http.client.HTTPException) as error:
            failed.append(repr(error))
        finally:
            connection.close()

    clients = [threading.Thread(target=client) for _ in range(asked["clients"])]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    if failed:
        sys.exit(failed[0])
    sys.stdout.write(str(next(answered)))


if __name__ == "__main__":
    main()
