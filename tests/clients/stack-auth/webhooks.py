"""Webhooks signed by Svix's official Python library, as Stack Auth delivers them."""

import datetime
import json
import os
import time
import urllib.error
import urllib.request

from svix.webhooks import Webhook

GATE, ADMIN, TOKEN = os.environ["GATE"], os.environ["ADMIN"], os.environ["ADMIN_TOKEN"]
WEBHOOK = Webhook(os.environ["SECRET"])


def call(url, headers, body=None):
    request = urllib.request.Request(url, data=body.encode() if body else None, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def deliver(message, event, user, mail, tampered=False, age=0):
    data = {"id": user, "teams": []} if event == "user.deleted" else {
        "id": user,
        "primary_email": mail,
        "primary_email_verified": True,
        "display_name": "Zoë",
        "is_anonymous": False,
        "is_restricted": False,
        "risk_scores": {"sign_up": {"bot": 0, "free_trial_abuse": 0}},
    }
    body = json.dumps({"type": event, "data": data}, ensure_ascii=False)
    at = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=age)
    headers = {
        "content-type": "application/json",
        "svix-id": message,
        "svix-timestamp": str(int(at.timestamp())),
        "svix-signature": WEBHOOK.sign(message, at, body),
    }
    return call(f"{GATE}/api/auth/webhook", headers, body.replace("Zoë", "Eve") if tampered else body)[0]


def shown(user):
    return call(f"{ADMIN}/admin/v1/users/{user}", {"authorization": f"Bearer {TOKEN}"})


def until(what, holds):
    for _ in range(200):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError(what)


user, mail = "python-user", "zoe@example.com"
assert deliver("msg_py_1", "user.created", user, mail) == 200
assert deliver("msg_py_1", "user.created", user, mail) == 200, "a copy"
assert deliver("msg_py_2", "user.created", user, mail) == 200, "sent again under another id"
assert deliver("msg_py_3", "user.created", "liar", mail, tampered=True) == 400
assert deliver("msg_py_4", "user.created", "late", mail, age=301) == 400
until("the user is there", lambda: shown(user)[0] == 200)
status, found = shown(user)
assert (found["email"], found["credits"]["available"], len(found["grants"])) == (mail, 5, 1), found
assert shown("liar")[0] == shown("late")[0] == 404
# These ids are no KSUIDs, so that the delivery's second says which came later.
time.sleep(1.1)
assert deliver("msg_py_5", "user.updated", user, "new@example.com") == 200
until("the new mail address", lambda: shown(user)[1]["email"] == "new@example.com")
assert deliver("msg_py_6", "user.deleted", user, mail) == 200
until("the account is closed", lambda: shown(user)[1]["status"] == "closed")
assert deliver("msg_py_7", "user.created", user, mail) == 200, "a late one"
assert deliver("msg_py_8", "user.created", "python-again", mail) == 200
until("who came again is there", lambda: shown("python-again")[0] == 200)
assert shown("python-again")[1]["credits"]["available"] == 0, "one mailbox, one grant"
assert shown(user)[1]["status"] == "closed"
print("svix (python): ok")
