// So many requests a second, whether or not the gateway keeps up: LOAD_RATE (150) by LOAD_USERS (100).
import { chat, number, pick, seconds, summary, thresholds, users } from './lib/gate.js';

const rate = number('LOAD_RATE', 150);

export const options = {
  scenarios: {
    steady: {
      executor: 'constant-arrival-rate', rate, timeUnit: '1s', duration: seconds(20), preAllocatedVUs: 50, maxVUs: 500,
    },
  },
  // Arrivals that found no free virtual user were not sent: then this machine was too small for the rate.
  thresholds: { ...thresholds, dropped_iterations: ['count==0'] },
};
export const handleSummary = summary('steady');

export function setup() {
  return users(number('LOAD_USERS', 100), 100000);
}

export default function (keys) {
  chat(pick(keys));
}
