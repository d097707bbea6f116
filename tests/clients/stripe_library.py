"""Stripe's own library: what it signs is taken by the gateway, and it drives the simulator as it drives Stripe.

Environment: GATE, ADMIN and ADMIN_TOKEN (the gateway's), SECRETS (its webhook secrets, with a comma between), STRIPE (the
simulator's address, with the prices price_basic and price_pro).
"""

import http.server
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request

import stripe

GATE, ADMIN, ADMIN_TOKEN, STRIPE = (os.environ[name] for name in ("GATE", "ADMIN", "ADMIN_TOKEN", "STRIPE"))
SECRET, NEXT = os.environ["SECRETS"].split(",")


def client(key):
    return stripe.StripeClient(key, base_addresses={"api": STRIPE}, max_network_retries=0)


api = client("sk_test_clients")


def call(url, body=None, headers=None):
    request = urllib.request.Request(url, data=body, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def sim(place, **form):
    status, text = call(f"{STRIPE}/_sim/{place}", urllib.parse.urlencode(form).encode())
    assert status == 200, (place, status, text)
    return json.loads(text)


def admin(path):
    return call(f"http://{ADMIN}{path}", headers={"authorization": f"Bearer {ADMIN_TOKEN}"})


def refused(kind, work, **wanted):
    try:
        work()
    except kind as error:
        assert type(error) is kind, type(error)
        for name, value in wanted.items():
            assert getattr(error, name) == value, (name, getattr(error, name), error)
        return error
    raise AssertionError("it was not refused")


def signatures():
    """What is not Stripe's leaves no trace but a metric."""

    def body(name):
        data = {"object": {"id": "cus_none", "object": "customer"}}
        event = {"id": name, "object": "event", "type": "customer.created", "created": 1_700_000_000, "livemode": False, "data": data}
        return json.dumps(event)

    def sign(payload, secret=SECRET, at=None, scheme="v1"):
        at = int(time.time()) if at is None else at
        return f"t={at},{scheme}={stripe.WebhookSignature._compute_signature(f'{at}.{payload}', secret)}"

    def send(payload, header):
        headers = {"content-type": "application/json"}
        if header:
            headers["stripe-signature"] = header
        return call(f"{GATE}/api/billing/webhook", payload.encode(), headers)[0]

    def results():
        found = re.findall(r'^faregate_billing_webhooks_total\{result="(\w+)"\} (\d+)$', admin("/metrics")[1], re.M)
        return {name: int(count) for name, count in found}

    before = results()
    good, rotated, both, bad = (body(f"evt_python_{name}") for name in ("1", "2", "3", "bad"))
    assert send(good, sign(good)) == 200
    assert send(good, sign(good)) == 200
    assert send(rotated, sign(rotated, NEXT)) == 200
    now = int(time.time())
    assert send(both, f"{sign(both, 'whsec_older', now)},{sign(both, NEXT, now).split(',')[1]}") == 200
    assert send(bad + " ", sign(bad)) == 400
    assert send(bad, sign(bad, at=now - 301 - 10)) == 400
    assert send(bad, sign(bad, "whsec_another")) == 400
    assert send(bad, sign(bad, scheme="v0")) == 400
    assert send(bad, None) == 400
    assert admin("/admin/v1/events/evt_python_bad")[0] == 404
    for number in range(1, 4):
        assert admin(f"/admin/v1/events/evt_python_{number}")[0] == 200
    after = results()
    more = [after.get(name, 0) - before.get(name, 0) for name in ("stored", "duplicate", "wrong", "stale", "malformed")]
    assert more == [3, 1, 2, 1, 2], more


def receive():
    """What the simulator signs is verified by the library."""
    got = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            got.append((self.rfile.read(int(self.headers["content-length"])), self.headers["stripe-signature"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Receiver) as server:
        server.timeout = 30
        endpoint = sim("endpoints", url=f"http://127.0.0.1:{server.server_port}/", secret="whsec_a", secret2="whsec_b")
        api.v1.customers.create({"email": "told@example.com"})
        server.handle_request()
        api.v1.webhook_endpoints.delete(endpoint["id"])
    payload, header = got[0]
    for secret in ("whsec_a", "whsec_b"):
        assert api.construct_event(payload, header, secret).type.startswith("customer.")
    refused(stripe.SignatureVerificationError, lambda: api.construct_event(payload, header, "whsec_c"))


def customers():
    made = {"email": "ann@example.com", "metadata": {"user": "ann"}}
    once = {"idempotency_key": f"python-{os.getpid()}"}
    customer = api.v1.customers.create(made, once)
    again = api.v1.customers.create(made, once)
    assert again.id == customer.id and again.last_response.headers["idempotent-replayed"] == "true"
    refused(stripe.IdempotencyError, lambda: api.v1.customers.create({"email": "bob@example.com"}, once), http_status=400)
    renamed = api.v1.customers.update(customer.id, {"name": "Ann"})
    assert (renamed.name, renamed.metadata["user"]) == ("Ann", "ann")
    missing = {"code": "resource_missing", "param": "id", "http_status": 404}
    refused(stripe.InvalidRequestError, lambda: api.v1.customers.retrieve("cus_none"), **missing)
    refused(stripe.AuthenticationError, lambda: client("rubbish").v1.customers.list(), http_status=401)
    return customer.id


def subscriptions(customer):
    def order(price):
        items = [{"price": price, "quantity": 1}]
        return {"mode": "subscription", "customer": customer, "line_items": items, "success_url": "http://127.0.0.1/done"}

    missing = {"code": "resource_missing", "param": "line_items[0][price]"}
    refused(stripe.InvalidRequestError, lambda: api.v1.checkout.sessions.create(order("price_none")), **missing)
    session = api.v1.checkout.sessions.create(order("price_basic"))
    assert session.status == "open" and session.url.startswith(STRIPE)
    sim(f"checkout/{session.id}/complete")
    done = api.v1.checkout.sessions.retrieve(session.id, {"expand": ["subscription", "line_items"]})
    subscription = done.subscription
    assert (done.status, done.payment_status, subscription.status) == ("complete", "paid", "active")
    assert done.line_items.data[0].price.id == "price_basic"

    change = {"items": [{"id": subscription["items"].data[0].id, "price": "price_pro"}], "proration_behavior": "always_invoice"}
    preview = api.v1.invoices.create_preview({"subscription": subscription.id, "subscription_details": change})
    how = {"payment_behavior": "pending_if_incomplete", "expand": ["latest_invoice.payments"]}
    changed = api.v1.subscriptions.update(subscription.id, {**change, **how})
    assert changed["items"].data[0].price.id == "price_pro"
    assert changed.latest_invoice.amount_paid == preview.amount_due > 0

    invoices = list(api.v1.invoices.list({"customer": customer, "limit": 1}).auto_paging_iter())
    assert [invoice.billing_reason for invoice in invoices] == ["subscription_update", "subscription_create"]
    for invoice in invoices:
        assert (invoice.status, invoice.parent.subscription_details.subscription) == ("paid", subscription.id)
    assert api.v1.subscriptions.update(subscription.id, {"cancel_at_period_end": True}).cancel_at_period_end
    assert api.v1.subscriptions.cancel(subscription.id).status == "canceled"
    return changed.latest_invoice.payments.data[0].payment.payment_intent


def money(customer, paid):
    refund = api.v1.refunds.create({"payment_intent": paid, "amount": 100})
    assert (refund.status, refund.amount) == ("succeeded", 100)
    charge = api.v1.payment_intents.retrieve(paid, {"expand": ["latest_charge"]}).latest_charge
    assert charge.amount_refunded == 100
    too_much = {"payment_intent": paid, "amount": 1_000_000}
    refused(stripe.InvalidRequestError, lambda: api.v1.refunds.create(too_much), http_status=400)
    payment = {"amount": 500, "currency": "usd"}
    declined = {**payment, "customer": customer, "payment_method": "pm_card_chargeDeclined", "confirm": True, "off_session": True}
    error = refused(stripe.CardError, lambda: api.v1.payment_intents.create(declined), code="card_declined", http_status=402)
    assert error.json_body["error"]["payment_intent"]["status"] == "requires_payment_method"
    refused(stripe.InvalidRequestError, lambda: api.v1.payment_intents.create({**payment, "colour": "red"}), param="colour")
    sim("faults", path="/v1/customers", fault="error")
    refused(stripe.APIError, lambda: api.v1.customers.list(), http_status=500)
    sim("faults", path="/v1/customers", fault="rate_limit")
    refused(stripe.RateLimitError, lambda: api.v1.customers.list(), http_status=429)

    types = ["invoice.paid", "charge.refunded"]
    events = api.v1.events.list({"types": types, "limit": 100}).data
    assert {event.type for event in events} == set(types)
    event = api.v1.events.retrieve(events[0].id)
    assert event.data.object.object == event.type.split(".")[0]
    portal = api.v1.billing_portal.sessions.create({"customer": customer, "return_url": "http://127.0.0.1/back"})
    assert portal.url.startswith(STRIPE)


signatures()
receive()
customer = customers()
money(customer, subscriptions(customer))
print("stripe, python: ok")
