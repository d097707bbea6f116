import { formatDateTime, formatNumber, useFaregate } from "@faregate/react";
import { Badge, Section, Skeleton } from "../../react/src/components/parts.js";
import { Listing } from "./list.js";
import { parse, total, type Metrics } from "./metrics.js";
import { usePoll } from "./poll.js";

const POLL_MS = 5_000;

interface Ready {
  status: string;
  ledger: string;
  store: string;
  routes: string;
}

async function ask(signal: AbortSignal): Promise<{ ready: Ready; metrics: Metrics }> {
  const [ready, metrics] = await Promise.all([
    fetch("/readyz", { signal, cache: "no-store" }),
    fetch("/metrics", { signal, cache: "no-store" }),
  ]);
  return { ready: (await ready.json()) as Ready, metrics: parse(await metrics.text()) };
}

/** Whether ledger, store and routes are there, and what waits on its way. */
export function Health() {
  const { data, failed } = usePoll(ask, POLL_MS);
  const { locale } = useFaregate();
  if (data === undefined) {
    return failed ? (
      <p className="fg-note fg-note-error" role="alert">
        The gateway does not answer.
      </p>
    ) : (
      <Skeleton rows={5} />
    );
  }
  const { ready, metrics } = data;
  const count = (name: string, labels = {}) => total(metrics, name, labels);
  const number = (value: number) => formatNumber(value, locale);
  const parts: [string, string, string][] = [
    ["Ledger", ready.ledger, "Hot balances: without it nothing is served."],
    ["Store", ready.store, "Users, grants, usage: what lasts."],
    ["Routes", ready.routes, "An upstream is configured, and the gateway is not ending."],
  ];
  const figures: [string, string, boolean][] = [
    ["Events not yet in the store", number(count("faregate_outbox_backlog")), count("faregate_outbox_lag_milliseconds") > 60_000],
    ["Age of the oldest, ms", number(count("faregate_outbox_lag_milliseconds")), count("faregate_outbox_lag_milliseconds") > 60_000],
    ["Billing changes on their way", number(count("faregate_pending_changes")), count("faregate_pending_changes") > 1_000],
    ["Stripe events waiting", number(count("faregate_billing_events", { state: "pending" })), false],
    ["Stripe events parked", number(count("faregate_billing_events", { state: "parked" })), count("faregate_billing_events", { state: "parked" }) > 0],
    ["Events that could not be written", number(count("faregate_dead_letters_total")), count("faregate_dead_letters_total") > 0],
    ["Upstreams left alone", number(count("faregate_upstream_breaker_open")), count("faregate_upstream_breaker_open") > 0],
    ["Shards opened anew", number(count("faregate_ledger_reopenings_total")), count("faregate_ledger_reopenings_total") > 0],
    ["Sessions fenced", number(count("faregate_sessions_fenced_total")), false],
    ["Panics", number(count("faregate_panics_total")), count("faregate_panics_total") > 0],
    ["Memory, MB", number(count("process_resident_memory_bytes") / 1e6), false],
  ];
  return (
    <>
      {failed && (
        <p className="fg-note fg-note-offline" role="status">
          The gateway does not answer; what is shown is the last that it told.
        </p>
      )}
      <Section
        title="Health"
        className="health"
        actions={<Badge tone={ready.status === "ready" ? "good" : "bad"}>{ready.status}</Badge>}
      >
        <ul className="items">
          {parts.map(([name, state, what]) => (
            <li key={name}>
              <span className="what">
                {name}
                <span className="soft">{what}</span>
              </span>
              <Badge tone={state === "ready" ? "good" : "bad"}>{state}</Badge>
            </li>
          ))}
        </ul>
      </Section>
      <Section title="On its way" className="figures">
        <ul className="items">
          {figures.map(([name, value, bad]) => (
            <li key={name}>
              <span className="what">{name}</span>
              <span className={bad ? "fg-bad" : undefined}>
                <strong>{value}</strong>
                {bad && <span className="fg-visually-hidden"> (look into it)</span>}
              </span>
            </li>
          ))}
        </ul>
      </Section>
      <DeadLetters />
    </>
  );
}

interface Letter {
  id: number;
  at: string;
  user: string;
  reason: string;
  detail: string;
  event: unknown;
}

/** Events that the store would not take as they were, and messages to the product's backend that were given up. */
function DeadLetters() {
  const { locale } = useFaregate();
  return (
    <Section title="Dead letters" className="letters">
      <Listing<Letter>
        path="/dead-letters?limit=20"
        label="Dead letters"
        empty="There are none."
        head={["When", "User", "Why", "What happened", "Content"]}
        row={(letter) => (
          <tr key={letter.id}>
            <td>{formatDateTime(letter.at, locale)}</td>
            <td>{letter.user}</td>
            <td>{letter.reason}</td>
            <td className="fg-wrap">{letter.detail}</td>
            <td className="fg-wrap code">{JSON.stringify(letter.event)}</td>
          </tr>
        )}
      />
    </Section>
  );
}
