// A mix for a long time (LOAD_SCALE=360: three hours): the gateway must not grow, and the books must stay right.
import { sleep } from 'k6';
import exec from 'k6/execution';
import { chat, expect, grown, metrics, number, pick, ride, seconds, summary, thresholds, users } from './lib/gate.js';

export const options = {
  scenarios: { soak: { executor: 'constant-vus', vus: number('LOAD_VUS', 40), duration: seconds(30) } },
  // A start's own growth (caches, pools, arenas) is in it.
  thresholds: { ...thresholds, gateway_memory_growth_mb: ['value<100'] },
};
export const handleSummary = summary('soak');

export function setup() {
  const keys = users(number('LOAD_USERS', 100), 1000000);
  return { keys, memory: metrics().process_resident_memory_bytes };
}

export default function ({ keys }) {
  const key = pick(keys);
  switch (exec.scenario.iterationInTest % 6) {
    case 0: chat(key, { stream: true, tokens: 20, chunkMs: 10 }); break;
    case 1: expect(ride(key, '/api/credits/check', null).json('available') > 0, 'credits are left'); break;
    case 2: {
      const { id } = ride(key, '/api/credits/reserve', { amount: 3 }, [201]).json();
      ride(key, '/api/credits/settle', { id, amount: 1 });
      break;
    }
    case 3: ride(key, '/v1/messages', { model: 'load', max_tokens: 20, messages: [{ role: 'user', content: 'Hello' }] }); break;
    default: chat(key);
  }
  sleep(0.05);
}

export function teardown({ memory }) {
  grown(memory);
}
