// Everything once: does it work at all, before anything is loaded?
import { chat, expect, ride, summary, thresholds, users } from './lib/gate.js';

export const options = { vus: 1, iterations: 5, thresholds };
export const handleSummary = summary('smoke');

export function setup() {
  return { keys: users(1, 1000, 'rich'), poor: users(1, 0, 'poor') };
}

export default function ({ keys: [key], poor: [poor] }) {
  ride(key, '/v1/models', null);
  chat(key);
  chat(key, { stream: true });
  const message = { model: 'load', max_tokens: 20, messages: [{ role: 'user', content: 'Hello' }] };
  expect(ride(key, '/v1/messages', message).json('usage.output_tokens') > 0, 'a message has tokens');
  ride(key, '/v1/embeddings', { model: 'load', input: 'Hello' });
  expect(ride(key, '/api/credits/check', null).json('available') > 0, 'credits are left');
  expect(ride(key, '/api/credits/deduct', { amount: 0.25 }).json('charged') === 0.25, 'a quarter is charged');
  const { id } = ride(key, '/api/credits/reserve', { amount: 2 }, [201]).json();
  expect(ride(key, '/api/credits/settle', { id, amount: 1.5 }).json('charged') === 1.5, 'the hold is settled');
  ride(key, '/api/credits/release', { id }, [409]);
  ride(key, '/api/usage?limit=10', null);
  ride(key, '/api/plans', null);
  ride(key, '/nowhere', null, [404]);
  ride('fg_live_nobody', '/v1/models', null, [401]);
  ride(key, '/v1/chat/completions', { model: 'load', max_completion_tokens: 'many' }, [400]);
  chat(poor, { foreseen: [200, 402] });
}
