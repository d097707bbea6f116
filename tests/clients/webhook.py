"""Receives one webhook, and verifies it with the official library of Standard Webhooks.

Environment: SECRETS (with commas between), PORT_FILE (where the port is written).
"""

import http.server
import os
import sys

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

SECRETS = os.environ["SECRETS"].split(",")
OTHER = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
problems = ["nothing came"]


def refuses(secret, body, headers):
    try:
        Webhook(secret).verify(body, headers)
    except WebhookVerificationError:
        return True
    return False


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        headers = {name.lower(): value for name, value in self.headers.items()}
        problems.clear()
        for secret in SECRETS:
            if refuses(secret, body, headers):
                problems.append("a signature is refused")
            elif Webhook(secret).verify(body, headers)["type"] != "test":
                problems.append("the body is another")
        if not refuses(OTHER, body, headers) or not refuses(SECRETS[0], body + " ", headers):
            problems.append("what is not ours is taken")
        self.send_response(500 if problems else 204)
        self.end_headers()

    def log_message(self, *_):
        pass


server = http.server.HTTPServer(("127.0.0.1", 0), Receiver)
server.timeout = 30
with open(os.environ["PORT_FILE"], "w") as file:
    file.write(str(server.server_port))
server.handle_request()
print("webhook, python:", "; ".join(problems) or "ok")
sys.exit(bool(problems))
