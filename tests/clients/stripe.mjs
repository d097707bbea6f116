// Stripe's own library: what it signs is taken by the gateway, and it drives the simulator as it drives Stripe.
// Environment: GATE, ADMIN and ADMIN_TOKEN (the gateway's), SECRETS (its webhook secrets, with a comma between), STRIPE (the
// simulator's address, with the prices price_basic and price_pro).
import assert from "node:assert/strict";
import { createServer } from "node:http";
import Stripe from "stripe";

const { GATE, ADMIN, ADMIN_TOKEN, SECRETS, STRIPE } = process.env;
const [secret, next] = SECRETS.split(",");
const at = new URL(STRIPE);
const client = (key) => new Stripe(key, { host: at.hostname, port: at.port, protocol: "http", maxNetworkRetries: 0, telemetry: false });
const stripe = client("sk_test_clients");

const sim = async (path, form = {}) => {
  const answer = await fetch(`${STRIPE}/_sim/${path}`, { method: "POST", body: new URLSearchParams(form) });
  assert.equal(answer.status, 200, `${path}: ${answer.status}`);
  return answer.json();
};
const admin = async (path) => fetch(`http://${ADMIN}${path}`, { headers: { authorization: `Bearer ${ADMIN_TOKEN}` } });
const refused = async (call, wanted) => {
  const error = await call.then(() => assert.fail("it was not refused"), (error) => error);
  for (const [name, value] of Object.entries(wanted)) assert.deepEqual(error[name], value, `${name} of ${error}`);
  return error;
};

// What is not Stripe's leaves no trace but a metric.
async function signatures() {
  const body = (id) => JSON.stringify({
    id, object: "event", type: "customer.created", created: 1_700_000_000, livemode: false,
    data: { object: { id: "cus_none", object: "customer" } },
  });
  const send = async (payload, header) => {
    const headers = { "content-type": "application/json", ...(header && { "stripe-signature": header }) };
    return (await fetch(`${GATE}/api/billing/webhook`, { method: "POST", headers, body: payload })).status;
  };
  const sign = (payload, more = {}) => stripe.webhooks.generateTestHeaderString({ payload, secret, ...more });
  const results = async () => {
    const text = await (await admin("/metrics")).text();
    const lines = text.matchAll(/^faregate_billing_webhooks_total\{result="(\w+)"\} (\d+)$/gm);
    return Object.fromEntries([...lines].map(([, name, count]) => [name, Number(count)]));
  };
  const before = await results();
  const now = Math.floor(Date.now() / 1000);
  const good = body("evt_node_1");
  assert.equal(await send(good, sign(good)), 200);
  assert.equal(await send(good, sign(good)), 200);
  const rotated = body("evt_node_2");
  assert.equal(await send(rotated, sign(rotated, { secret: next })), 200);
  const both = body("evt_node_3");
  const second = sign(both, { secret: next, timestamp: now }).split(",")[1];
  assert.equal(await send(both, `${sign(both, { secret: "whsec_older", timestamp: now })},${second}`), 200);

  const bad = body("evt_node_bad");
  assert.equal(await send(`${bad} `, sign(bad)), 400);
  assert.equal(await send(bad, sign(bad, { timestamp: now - 301 - 10 })), 400);
  assert.equal(await send(bad, sign(bad, { secret: "whsec_another" })), 400);
  assert.equal(await send(bad, sign(bad, { scheme: "v0" })), 400);
  assert.equal(await send(bad), 400);
  assert.equal((await admin("/admin/v1/events/evt_node_bad")).status, 404);
  for (const id of ["evt_node_1", "evt_node_2", "evt_node_3"]) assert.equal((await admin(`/admin/v1/events/${id}`)).status, 200);
  const after = await results();
  const more = (name) => (after[name] ?? 0) - (before[name] ?? 0);
  assert.deepEqual(["stored", "duplicate", "wrong", "stale", "malformed"].map(more), [3, 1, 2, 1, 2]);
}

// What the simulator signs is verified by the library.
async function receive() {
  const { promise, resolve } = Promise.withResolvers?.() ?? (() => {
    const made = {};
    made.promise = new Promise((resolve) => { made.resolve = resolve; });
    return made;
  })();
  const server = createServer(async (request, response) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    response.writeHead(200).end();
    resolve([Buffer.concat(chunks), request.headers["stripe-signature"]]);
  });
  await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
  const endpoint = await sim("endpoints", { url: `http://127.0.0.1:${server.address().port}/`, secret: "whsec_a", secret2: "whsec_b" });
  await stripe.customers.create({ email: "told@example.com" });
  const [payload, header] = await promise;
  for (const secret of ["whsec_a", "whsec_b"]) {
    assert.match(stripe.webhooks.constructEvent(payload, header, secret).type, /^customer\./);
  }
  assert.throws(() => stripe.webhooks.constructEvent(payload, header, "whsec_c"), Stripe.errors.StripeSignatureVerificationError);
  await stripe.webhookEndpoints.del(endpoint.id);
  server.closeAllConnections();
  server.close();
}

async function customers() {
  const made = { email: "ann@example.com", metadata: { user: "ann" } };
  const key = `node-${process.pid}`;
  const customer = await stripe.customers.create(made, { idempotencyKey: key });
  const again = await stripe.customers.create(made, { idempotencyKey: key });
  assert.equal(again.id, customer.id);
  assert.equal(again.lastResponse.headers["idempotent-replayed"], "true");
  await refused(stripe.customers.create({ email: "bob@example.com" }, { idempotencyKey: key }), { type: "StripeIdempotencyError", statusCode: 400 });
  const renamed = await stripe.customers.update(customer.id, { name: "Ann" });
  assert.deepEqual([renamed.name, renamed.metadata.user], ["Ann", "ann"]);
  await refused(stripe.customers.retrieve("cus_none"), { type: "StripeInvalidRequestError", code: "resource_missing", param: "id", statusCode: 404 });
  await refused(client("rubbish").customers.list(), { type: "StripeAuthenticationError", statusCode: 401 });
  return customer.id;
}

async function subscriptions(customer) {
  const order = { mode: "subscription", customer, line_items: [{ price: "price_basic", quantity: 1 }], success_url: "http://127.0.0.1/done" };
  await refused(stripe.checkout.sessions.create({ ...order, line_items: [{ price: "price_none", quantity: 1 }] }),
    { type: "StripeInvalidRequestError", code: "resource_missing", param: "line_items[0][price]" });
  const session = await stripe.checkout.sessions.create(order);
  assert.equal(session.status, "open");
  assert.ok(session.url.startsWith(STRIPE));
  await sim(`checkout/${session.id}/complete`);
  const done = await stripe.checkout.sessions.retrieve(session.id, { expand: ["subscription", "line_items"] });
  assert.deepEqual([done.status, done.payment_status, done.subscription.status], ["complete", "paid", "active"]);
  assert.equal(done.line_items.data[0].price.id, "price_basic");
  const { id, items } = done.subscription;

  const change = { items: [{ id: items.data[0].id, price: "price_pro" }], proration_behavior: "always_invoice" };
  const preview = await stripe.invoices.createPreview({ subscription: id, subscription_details: change });
  const changed = await stripe.subscriptions.update(id, { ...change, payment_behavior: "pending_if_incomplete", expand: ["latest_invoice.payments"] });
  assert.equal(changed.items.data[0].price.id, "price_pro");
  assert.equal(changed.latest_invoice.amount_paid, preview.amount_due);
  assert.ok(preview.amount_due > 0);

  const invoices = [];
  for await (const invoice of stripe.invoices.list({ customer, limit: 1 })) invoices.push(invoice);
  assert.deepEqual(invoices.map((invoice) => invoice.billing_reason), ["subscription_update", "subscription_create"]);
  assert.ok(invoices.every((invoice) => invoice.status === "paid" && invoice.parent.subscription_details.subscription === id));
  const ending = await stripe.subscriptions.update(id, { cancel_at_period_end: true });
  assert.equal(ending.cancel_at_period_end, true);
  assert.equal((await stripe.subscriptions.cancel(id)).status, "canceled");
  return changed.latest_invoice.payments.data[0].payment.payment_intent;
}

async function money(customer, paid) {
  const refund = await stripe.refunds.create({ payment_intent: paid, amount: 100 });
  assert.deepEqual([refund.status, refund.amount], ["succeeded", 100]);
  const charge = (await stripe.paymentIntents.retrieve(paid, { expand: ["latest_charge"] })).latest_charge;
  assert.equal(charge.amount_refunded, 100);
  await refused(stripe.refunds.create({ payment_intent: paid, amount: 1_000_000 }), { type: "StripeInvalidRequestError", statusCode: 400 });
  const declined = { amount: 500, currency: "usd", customer, payment_method: "pm_card_chargeDeclined", confirm: true, off_session: true };
  const error = await refused(stripe.paymentIntents.create(declined), { type: "StripeCardError", code: "card_declined", statusCode: 402 });
  assert.equal(error.payment_intent.status, "requires_payment_method");
  await refused(stripe.paymentIntents.create({ amount: 500, currency: "usd", colour: "red" }), { type: "StripeInvalidRequestError", param: "colour" });
  await sim("faults", { path: "/v1/customers", fault: "error" });
  await refused(stripe.customers.list(), { type: "StripeAPIError", statusCode: 500 });
  await sim("faults", { path: "/v1/customers", fault: "rate_limit" });
  await refused(stripe.customers.list(), { type: "StripeRateLimitError", statusCode: 429 });

  const types = ["invoice.paid", "charge.refunded"];
  const events = await stripe.events.list({ types, limit: 100 });
  assert.ok(types.every((type) => events.data.some((event) => event.type === type)) && events.data.every((event) => types.includes(event.type)));
  const event = await stripe.events.retrieve(events.data[0].id);
  assert.equal(event.data.object.object, event.type.split(".")[0]);
  const portal = await stripe.billingPortal.sessions.create({ customer, return_url: "http://127.0.0.1/back" });
  assert.ok(portal.url.startsWith(STRIPE));
}

await signatures();
await receive();
const customer = await customers();
await money(customer, await subscriptions(customer));
console.log("stripe, node: ok");
