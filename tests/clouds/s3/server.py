"""An S3 server in memory, on a free port of loopback, for tests/clouds: prints its port, and ends with its standard input.

    target/s3-server/bin/python tests/clouds/s3/server.py

It is one of Google Cloud Storage's XML API too, which is that of S3 but for the conditions of a write.
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
# What S3's clients send in place of a token, and nobody checks here.
SIGNED = "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=x"


def serve(environ, start_response):
    if not environ.get("HTTP_AUTHORIZATION", "").startswith("AWS4"):
        environ["HTTP_AUTHORIZATION"] = SIGNED
    # Google's word for what is not there yet.
    if environ.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", None) == "0":
        environ["HTTP_IF_NONE_MATCH"] = "*"
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
