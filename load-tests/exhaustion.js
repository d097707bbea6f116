// Many users run dry at once: LOAD_USERS (60) with 5 credits each and a credit a message, each asked for 15 messages by
// clients that do not wait for each other. Exactly five are answered, the others get 402, and nobody is left with less than
// nothing.
import exec from 'k6/execution';
import { Counter } from 'k6/metrics';
import { balance, chat, eventually, number, summary, thresholds, users } from './lib/gate.js';

const count = number('LOAD_USERS', 60);
const credits = 5;
const answered = new Counter('answered');

export const options = {
  scenarios: { exhaustion: { executor: 'shared-iterations', vus: 60, iterations: count * 15, maxDuration: '120s' } },
  thresholds: { ...thresholds, answered: [`count==${count * credits}`] },
};
export const handleSummary = summary('exhaustion');

export function setup() {
  // The plan `free` of the load tests' settings gives nothing.
  return users(count, credits, 'dry');
}

export default function (keys) {
  // Fifteen in a row for the same user, by as many clients as there are.
  const user = Math.floor(exec.scenario.iterationInTest / 15);
  if (chat(keys[user], { foreseen: [200, 402] }).status === 200) answered.add(1);
}

export function teardown() {
  for (let user = 0; user < count; user++) {
    eventually(`dry-${user} has spent it all`, () => {
      const { available, held, debt } = balance(`dry-${user}`);
      return available === 0 && held === 0 && debt === 0;
    });
  }
}
