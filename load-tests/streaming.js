// LOAD_STREAMS (200) streams at a time, each of 50 tokens 20 ms apart; k6 reads a stream whole, so what it measures is the
// time to the first byte and to the last.
import { chat, eventually, metrics, number, pick, seconds, summary, thresholds, users } from './lib/gate.js';

export const options = {
  scenarios: { streaming: { executor: 'constant-vus', vus: number('LOAD_STREAMS', 200), duration: seconds(15) } },
  thresholds,
};
export const handleSummary = summary('streaming');

export function setup() {
  return users(number('LOAD_USERS', 100), 100000);
}

export default function (keys) {
  chat(pick(keys), { stream: true, tokens: 50, chunkMs: 20 });
}

export function teardown() {
  eventually('no stream and no hold is left', () => {
    const found = metrics();
    return found.faregate_streams === 0 && found.faregate_holds_in_flight === 0;
  });
}
