// What the load tests share: users with keys, rides through the gateway, what is counted, and the summary.
import http from 'k6/http';
import { sleep } from 'k6';
import exec from 'k6/execution';
import { Counter, Gauge, Rate, Trend } from 'k6/metrics';

export const gate = __ENV.GATE;
export const admin = __ENV.ADMIN;
const token = __ENV.ADMIN_TOKEN;
/** Multiplies durations: 1 is the short form of `make load`. */
export const scale = Number(__ENV.LOAD_SCALE || 1);

/** Statuses that the test did not foresee; what they were is printed. */
export const unexpected = new Counter('unexpected_statuses');
export const rides = new Counter('rides');
export const refused = new Counter('rides_refused');
export const duration = new Trend('ride_duration', true);
export const waiting = new Trend('ride_first_byte', true);
const memory = new Gauge('gateway_memory_growth_mb');
const ok = new Rate('as_foreseen');

/** Fails the run: a status that nobody foresaw, or an answer that is not what it should be. */
export const thresholds = {
  unexpected_statuses: ['count==0'],
  as_foreseen: ['rate==1'],
};

/** Seconds of the short form, stretched by LOAD_SCALE. */
export function seconds(short) {
  return `${Math.round(short * scale)}s`;
}

/** A parameter of the test from the environment. */
export function number(name, standard) {
  const value = Number(__ENV[name] || standard);
  if (!Number.isFinite(value) || value < 0) throw new Error(`${name} is not a number`);
  return value;
}

/** Notes whether something came out as it should. */
export function expect(fact, what) {
  ok.add(Boolean(fact));
  if (!fact) console.error(`not as foreseen: ${what}`);
  return fact;
}

function operator(method, path, body) {
  const parameters = { headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' } };
  const answer = http.request(method, `${admin}/admin/v1${path}`, body && JSON.stringify(body), parameters);
  if (answer.status >= 300) exec.test.abort(`${method} ${path}: ${answer.status} ${answer.body}`);
  return answer.json();
}

/** For `setup`: users with so many credits each, and a key of each. */
export function users(count, credits, prefix = 'load') {
  const keys = [];
  for (let user = 0; user < count; user++) {
    const id = `${prefix}-${user}`;
    operator('POST', '/users', { id });
    if (credits > 0) operator('POST', `/users/${id}/grants`, { amount: credits });
    keys.push(operator('POST', `/users/${id}/keys`, { name: 'load' }).key);
  }
  return keys;
}

/** As the operator sees a user's credits. */
export function balance(user) {
  return operator('GET', `/users/${user}`).credits;
}

export function pick(keys) {
  return keys[exec.scenario.iterationInTest % keys.length];
}

/** One request through the gateway. `foreseen`: the statuses that may come. */
export function ride(key, path, body, foreseen = [200]) {
  const headers = { authorization: `Bearer ${key}`, 'content-type': 'application/json' };
  const method = body === null ? 'GET' : 'POST';
  const answer = http.request(method, `${gate}${path}`, body && JSON.stringify(body), { headers, timeout: '120s' });
  rides.add(1);
  if (answer.status === 402 || answer.status === 429) refused.add(1);
  duration.add(answer.timings.duration);
  waiting.add(answer.timings.waiting);
  if (!foreseen.includes(answer.status)) {
    unexpected.add(1);
    console.error(`${method} ${path}: ${answer.status} ${answer.error} ${String(answer.body).slice(0, 200)}`);
  }
  return answer;
}

/** A chat request whose answer has so many tokens. */
export function chat(key, { tokens = 13, stream = false, chunkMs = 0, foreseen = [200] } = {}) {
  const model = `load@tokens=${tokens}${chunkMs ? `,chunk-ms=${chunkMs}` : ''}`;
  const messages = [{ role: 'user', content: 'How far is it to the harbour, and which line goes there?' }];
  const answer = ride(key, '/v1/chat/completions', { model, messages, stream, max_completion_tokens: tokens }, foreseen);
  if (answer.status === 200 && stream) expect(answer.body.trimEnd().endsWith('data: [DONE]'), 'a stream ends with [DONE]');
  if (answer.status === 200 && !stream) expect(answer.json('usage.completion_tokens') === tokens, `${tokens} tokens`);
  return answer;
}

/** The gateway's metrics: name with labels → number. */
export function metrics() {
  const found = {};
  for (const line of http.get(`${admin}/metrics`).body.split('\n')) {
    const end = line.lastIndexOf(' ');
    if (!line.startsWith('#') && end > 0) found[line.slice(0, end)] = Number(line.slice(end + 1));
  }
  return found;
}

/** The sum of a metric over all its labels. */
export function total(found, name) {
  const mine = Object.keys(found).filter((key) => key === name || key.startsWith(`${name}{`));
  return mine.reduce((sum, key) => sum + found[key], 0);
}

/** Waits until a condition holds, `limit` seconds at most. */
export function eventually(what, condition, limit = 30) {
  for (let tries = 0; tries < limit * 10; tries++) {
    if (condition()) return expect(true, what);
    sleep(0.1);
  }
  return expect(false, what);
}

/** For `teardown` of tests that last: how much the gateway grew since `setup`, in MB. */
export function grown(before) {
  memory.add((metrics().process_resident_memory_bytes - before) / 1e6);
}

/** A quantile of a histogram, all labels together, in milliseconds; linear within a bucket, as Prometheus does. */
function quantile(found, name, share) {
  const buckets = {};
  for (const [key, value] of Object.entries(found)) {
    const bound = key.startsWith(`${name}_bucket{`) && key.match(/le="([^"]+)"/);
    if (bound) buckets[bound[1]] = (buckets[bound[1]] || 0) + value;
  }
  const bounds = Object.keys(buckets).sort((a, b) => Number(a === '+Inf' ? Infinity : a) - Number(b === '+Inf' ? Infinity : b));
  const wanted = share * (buckets['+Inf'] || 0);
  let [low, below] = [0, 0];
  for (const bound of bounds) {
    if (buckets[bound] >= wanted) {
      if (bound === '+Inf') return low * 1000;
      const within = buckets[bound] - below;
      return (low + (Number(bound) - low) * (within ? (wanted - below) / within : 0)) * 1000;
    }
    [low, below] = [Number(bound), buckets[bound]];
  }
  return 0;
}

/** `handleSummary` of every test: the figures as one line of a table, and all of them as JSON. */
export function summary(name) {
  return (data) => {
    const found = metrics();
    const value = (metric, key) => (data.metrics[metric] ? data.metrics[metric].values[key] || 0 : 0);
    const ms = (figure) => figure.toFixed(figure < 10 ? 2 : 0);
    const added = (share) => ms(quantile(found, 'faregate_added_latency_seconds', share));
    const failed = [];
    for (const [metric, { thresholds: limits }] of Object.entries(data.metrics)) {
      for (const [limit, { ok: kept }] of Object.entries(limits || {})) if (!kept) failed.push(`${metric} ${limit}`);
    }
    const cells = [
      name,
      value('rides', 'count'),
      value('rides', 'rate').toFixed(0),
      value('rides_refused', 'count'),
      value('unexpected_statuses', 'count'),
      `${ms(value('ride_first_byte', 'med'))} / ${ms(value('ride_first_byte', 'p(95)'))}`,
      `${ms(value('ride_duration', 'med'))} / ${ms(value('ride_duration', 'p(95)'))}`,
      `${added(0.5)} / ${added(0.95)} / ${added(0.99)}`,
      total(found, 'faregate_unacknowledged_answers_total'),
    ];
    const out = { stdout: failed.length ? `\n${name}: FAILED: ${failed.join(', ')}\n` : `\n${name}: all thresholds kept\n` };
    out[`${__ENV.OUT}/${name}.row`] = `| ${cells.join(' | ')} |\n`;
    out[`${__ENV.OUT}/${name}.json`] = JSON.stringify(data);
    return out;
  };
}
