// Stack Auth, as far as a gateway sees it: a key set, tokens in its exact shape, and webhooks. Tokens are made by jose,
// webhooks signed by Svix's official library. Writes its port into PORT_FILE, waits for the gateway's URL in GATE_FILE.
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import * as jose from 'jose';
import { Webhook } from 'svix';

const { PORT_FILE, GATE_FILE, PROJECT, SECRET } = process.env;

// Two keys for each audience; either may sign.
const AUDIENCES = {
  normal: { path: 'projects', suffix: '' },
  restricted: { path: 'projects-restricted-users', suffix: ':restricted' },
  anonymous: { path: 'projects-anonymous-users', suffix: ':anon' },
};

async function makeKey() {
  const { publicKey, privateKey } = await jose.generateKeyPair('ES256', { extractable: true });
  const kid = await jose.calculateJwkThumbprint(await jose.exportJWK(publicKey));
  return { kid, privateKey, jwk: { ...(await jose.exportJWK(publicKey)), kid, alg: 'ES256', use: 'sig' } };
}

const keys = {};
for (const name of Object.keys(AUDIENCES)) keys[name] = [await makeKey(), await makeKey()];
let base = '';

const issuer = createServer((request, response) => {
  const url = new URL(request.url, base);
  if (url.pathname !== `/api/v1/projects/${PROJECT}/.well-known/jwks.json`) {
    response.writeHead(404).end();
    return;
  }
  const names = ['normal'];
  if (url.searchParams.get('include_restricted') === 'true') names.push('restricted');
  if (url.searchParams.get('include_anonymous') === 'true') names.push('anonymous');
  response.writeHead(200, { 'content-type': 'application/json', 'cache-control': 'public, max-age=3600' });
  response.end(JSON.stringify({ keys: names.flatMap((name) => keys[name].map((key) => key.jwk)) }));
});
await new Promise((listening) => issuer.listen(0, '127.0.0.1', listening));
base = `http://127.0.0.1:${issuer.address().port}`;
writeFileSync(PORT_FILE, `${issuer.address().port}`);

function person(more = {}) {
  return { id: randomUUID(), email: `${randomUUID()}@example.com`, verified: true, audience: 'normal', ...more };
}

/** A token as Stack Auth's server makes it: each claim, in its order. */
async function token(who, { signer = keys[who.audience][0], kid = signer.kid, change = {}, life = 600 } = {}) {
  const { path, suffix } = AUDIENCES[who.audience];
  const now = Math.floor(Date.now() / 1000);
  const claims = {
    sub: who.id,
    project_id: PROJECT,
    branch_id: 'main',
    refresh_token_id: randomUUID(),
    role: 'authenticated',
    name: null,
    email: who.email,
    email_verified: who.verified,
    selected_team_id: null,
    signed_up_at: now - 5,
    is_anonymous: who.audience === 'anonymous',
    is_restricted: who.audience !== 'normal',
    restricted_reason: who.audience === 'restricted' ? { type: 'email_not_verified' } : null,
    requires_totp_mfa: false,
    ...change,
  };
  return new jose.SignJWT(claims)
    .setProtectedHeader({ alg: 'ES256', kid })
    .setIssuer(change.iss ?? `${base}/api/v1/${path}/${PROJECT}`)
    .setIssuedAt(now)
    .setAudience(change.aud ?? `${PROJECT}${suffix}`)
    .setExpirationTime(now + life)
    .sign(signer.privateKey);
}

while (!existsSync(GATE_FILE) || !readFileSync(GATE_FILE, 'utf8').trim()) await sleep(50);
const gate = readFileSync(GATE_FILE, 'utf8').trim();

async function check(headers) {
  const answer = await fetch(`${gate}/api/credits/check`, { headers });
  return { status: answer.status, body: await answer.json() };
}

// Each audience, by each of its keys.
const credits = { normal: 5, restricted: 0, anonymous: 0 };
for (const audience of Object.keys(AUDIENCES)) {
  for (const signer of keys[audience]) {
    const who = person({ audience, verified: audience === 'normal' });
    const { status, body } = await check({ 'x-stack-access-token': await token(who, { signer }) });
    assert.equal(status, 200, JSON.stringify(body));
    assert.equal(body.available, credits[audience], audience);
  }
}
// Every form in which the SDK sends it; one user, one grant.
const ann = person({ id: process.env.ANN });
const good = await token(ann);
const session = JSON.stringify({ accessToken: good, refreshToken: 'never-to-be-seen' });
const forms = [
  { 'x-stack-access-token': good },
  { 'x-stack-auth': session },
  { authorization: `Bearer ${good}` },
  { authorization: `Bearer stackauth_${Buffer.from(session).toString('base64')}` },
];
for (const headers of forms) {
  const { status, body } = await check(headers);
  assert.deepEqual([status, body.available, body.plan], [200, 5, 'free'], JSON.stringify(headers));
}
const chat = await fetch(`${gate}/v1/chat/completions`, {
  method: 'POST',
  headers: { 'x-stack-auth': session, 'content-type': 'application/json' },
  body: JSON.stringify({ model: 'demo', messages: [{ role: 'user', content: 'hi' }] }),
});
assert.deepEqual([chat.status, chat.headers.get('x-credits-remaining')], [200, '4'], await chat.text());

// Wrong ones.
const stranger = await makeKey();
const wrong = [
  ['expired', await token(ann, { life: -1 }), 'expired'],
  ['another audience', await token(ann, { change: { aud: `${PROJECT}:anon` } }), 'audience'],
  ['another issuer', await token(ann, { change: { iss: 'https://evil.example' } }), 'issuer'],
  ['flags that do not fit', await token(ann, { change: { is_anonymous: true, is_restricted: true } }), 'fit together'],
  ['a key nobody publishes', await token(ann, { signer: stranger }), 'publish'],
  ['signed by a stranger', await token(ann, { signer: stranger, kid: keys.normal[0].kid }), 'signature'],
  ['unsigned', new jose.UnsecuredJWT({ sub: ann.id }).setIssuer(base).encode(), 'JSON Web Token|algorithm|signed'],
];
for (const [what, bad, reason] of wrong) {
  const { status, body } = await check({ 'x-stack-access-token': bad });
  assert.equal(status, 401, `${what}: ${JSON.stringify(body)}`);
  assert.match(body.detail, new RegExp(reason), what);
}

// The keys rotate: what the new one signs is taken without a restart.
keys.normal = [keys.normal[1], await makeKey()];
const late = person();
for (let tries = 0; ; tries += 1) {
  const { status, body } = await check({ 'x-stack-access-token': await token(late, { signer: keys.normal[1] }) });
  if (status === 200) break;
  assert.ok(tries < 100, JSON.stringify(body));
  await sleep(100);
}

// Webhooks by Svix's library: twice, and one that lies.
const told = person();
const payload = JSON.stringify({
  type: 'user.created',
  data: {
    id: told.id,
    primary_email: told.email,
    primary_email_verified: true,
    display_name: 'Told',
    signed_up_at_millis: Date.now(),
    is_anonymous: false,
    is_restricted: false,
    restricted_reason: null,
    server_metadata: null,
    country_code: null,
    risk_scores: { sign_up: { bot: 0, free_trial_abuse: 0 } },
  },
});
const webhook = new Webhook(SECRET);
async function deliver(body, id, signed = body, at = new Date()) {
  const headers = {
    'content-type': 'application/json',
    'svix-id': id,
    'svix-timestamp': `${Math.floor(at.getTime() / 1000)}`,
    'svix-signature': webhook.sign(id, at, signed),
  };
  const answer = await fetch(`${gate}/api/auth/webhook`, { method: 'POST', headers, body });
  return answer.status;
}
const id = 'msg_2node00000000000000000000000';
assert.deepEqual([await deliver(payload, id), await deliver(payload, id)], [200, 200]);
assert.equal(await deliver(payload.replace('Told', 'Liar'), `${id}1`, payload), 400);
assert.equal(await deliver(payload, `${id}2`, payload, new Date(Date.now() - 301_000)), 400);
const { status, body } = await check({ 'x-stack-access-token': await token(told) });
assert.deepEqual([status, body.available], [200, 5], 'a webhook, its copy and a token are one grant');
console.log('jose and svix (node): ok');
issuer.close();
issuer.closeAllConnections();
