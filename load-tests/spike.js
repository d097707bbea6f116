// From calm to LOAD_SPIKE (600) requests a second within two seconds, and back: nothing is refused that was paid for.
import { chat, number, pick, seconds, summary, thresholds, users } from './lib/gate.js';

const top = number('LOAD_SPIKE', 600);

export const options = {
  scenarios: {
    spike: {
      executor: 'ramping-arrival-rate', startRate: 20, timeUnit: '1s', preAllocatedVUs: 100, maxVUs: 800,
      stages: [
        { target: 20, duration: seconds(4) }, { target: top, duration: '2s' }, { target: top, duration: seconds(8) },
        { target: 20, duration: '2s' }, { target: 20, duration: seconds(4) },
      ],
    },
  },
  thresholds,
};
export const handleSummary = summary('spike');

export function setup() {
  return users(number('LOAD_USERS', 100), 100000);
}

export default function (keys) {
  chat(pick(keys));
}
