"""An S3 server in memory, on a free port of loopback, for tests/s3: prints its port, and ends with its standard input.

    target/s3-server/bin/python tests/s3/server.py
"""

import logging
import os
import sys
import threading

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

logging.getLogger("werkzeug").setLevel(logging.ERROR)
app = DomainDispatcherApplication(create_backend_app)
one_at_a_time = threading.Lock()


def serve(environ, start_response):
    # moto looks whether a key is there (If-None-Match), then writes it; in S3 the two are one step.
    if environ["REQUEST_METHOD"] != "GET":
        with one_at_a_time:
            return app(environ, start_response)
    return app(environ, start_response)


server = make_server("127.0.0.1", 0, serve, threaded=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_port, flush=True)
sys.stdin.read()
os._exit(0)
