// Stripe's webhooks, LOAD_WEBHOOKS (200) a second: signed, some of them sent twice, some of them forged. What is stored is
// worked off before the test ends.
import crypto from 'k6/crypto';
import exec from 'k6/execution';
import http from 'k6/http';
import { duration, eventually, expect, gate, metrics, number, rides, seconds, summary, thresholds, total, unexpected, waiting } from './lib/gate.js';

const secret = __ENV.WEBHOOK_SECRET;
const rate = number('LOAD_WEBHOOKS', 200);

export const options = {
  scenarios: {
    webhooks: { executor: 'constant-arrival-rate', rate, timeUnit: '1s', duration: seconds(15), preAllocatedVUs: 50, maxVUs: 300 },
  },
  thresholds: { ...thresholds, dropped_iterations: ['count==0'] },
};
export const handleSummary = summary('webhooks');

function event(number, now) {
  // A kind that changes no credits: what is measured is receiving, storing and taking up.
  return JSON.stringify({
    id: `evt_load_${number}`, object: 'event', api_version: '2026-03-25.dahlia', created: now, livemode: false,
    type: 'customer.tax_id.created', data: { object: { id: `txi_${number}`, object: 'tax_id', customer: 'cus_load' } },
  });
}

export default function () {
  const turn = exec.scenario.iterationInTest;
  const now = Math.floor(Date.now() / 1000);
  const twice = turn % 20 === 1;
  const forged = turn % 20 === 2;
  const body = event(twice ? turn - 1 : turn, now);
  const signature = crypto.hmac('sha256', forged ? 'whsec_guessed' : secret, `${now}.${body}`, 'hex');
  const headers = { 'stripe-signature': `t=${now},v1=${signature}`, 'content-type': 'application/json' };
  const answer = http.post(`${gate}/api/billing/webhook`, body, { headers });
  rides.add(1);
  duration.add(answer.timings.duration);
  waiting.add(answer.timings.waiting);
  if (answer.status !== (forged ? 400 : 200)) {
    unexpected.add(1);
    console.error(`webhook: ${answer.status} ${answer.body}`);
  }
}

export function teardown() {
  eventually('every event is worked off', () => {
    const found = metrics();
    const done = found['faregate_billing_attempts_total{result="ignored"}'] || 0;
    return done === (found['faregate_billing_webhooks_total{result="stored"}'] || 0) && done > 0;
  }, 60);
  const found = metrics();
  expect(total(found, 'faregate_billing_events{state="parked"}') === 0, 'no event is parked');
  expect(found['faregate_billing_webhooks_total{result="wrong"}'] > 0, 'forged ones were told apart');
  expect(found['faregate_billing_webhooks_total{result="duplicate"}'] > 0, 'repeated ones were told apart');
}
