import { formatDateTime, formatMoney, useFaregate } from "@faregate/react";
import { useEffect, useState } from "react";
import { Answer, Badge, Section } from "../../react/src/components/parts.js";
import { focusOnce } from "../../react/src/components/PlanSelector.js";
import { useAction, useResource } from "../../react/src/hooks/resources.js";
import { Listing, Refusal } from "./list.js";

interface Event {
  id: string;
  event_type: string;
  object_id: string | null;
  state: "pending" | "processed" | "ignored" | "parked";
  user_id: string | null;
  amount: number | null;
  currency: string | null;
  attempts: number;
  error: string | null;
  received_at: string;
  processed_at: string | null;
  payload?: unknown;
}

const POLL_MS = 1_000;
const STATES = ["", "pending", "parked", "processed", "ignored"];
const TONES = { pending: "warn", processed: "good", ignored: "plain", parked: "bad" } as const;

/** What Stripe told, how it was taken, and once more. */
export function Events() {
  const [state, setState] = useState("");
  const [chosen, choose] = useState<string>();
  const { locale } = useFaregate();
  if (chosen !== undefined) return <OneEvent id={chosen} onBack={() => choose(undefined)} />;
  const path = state === "" ? "/events?limit=50" : `/events?limit=50&state=${state}`;
  return (
    <Section
      title="Stripe events"
      className="events"
      actions={
        <label className="field">
          State
          <select value={state} onChange={(event) => setState(event.target.value)}>
            {STATES.map((state) => (
              <option key={state} value={state}>
                {state || "all"}
              </option>
            ))}
          </select>
        </label>
      }
    >
      <Listing<Event>
        key={path}
        path={path}
        label="Stripe events"
        empty="No events."
        head={["Received", "Event", "User", "Amount", "State"]}
        row={(event) => (
          <tr key={event.id}>
            <td>{formatDateTime(event.received_at, locale)}</td>
            <th scope="row">
              <button type="button" className="fg-button fg-button-quiet as-link" onClick={() => choose(event.id)}>
                {event.event_type}
              </button>
            </th>
            <td>{event.user_id ?? "–"}</td>
            <td>{event.amount !== null && event.currency !== null ? formatMoney(event.amount, event.currency, locale) : "–"}</td>
            <td>
              <Badge tone={TONES[event.state]}>{event.state}</Badge>
            </td>
          </tr>
        )}
      />
    </Section>
  );
}

function OneEvent({ id, onBack }: { id: string; onBack: () => void }) {
  const { store, client, locale } = useFaregate();
  const path = `/events/${encodeURIComponent(id)}`;
  const query = useResource(store.resource(path, () => client.get<Event>(path)));
  const replay = useAction();
  const [done, finish] = useState(false);
  const { data, reload } = query;
  // What is under way is looked at again until it is done.
  useEffect(() => {
    if (data?.state !== "pending") return;
    const timer = setTimeout(() => void reload(), POLL_MS);
    return () => clearTimeout(timer);
  }, [data, reload]);
  const again = () =>
    replay.run(async () => {
      await client.post(`${path}/replay`, {});
      finish(true);
      await query.reload();
    });
  return (
    <>
      <div>
        <button type="button" className="fg-button" ref={focusOnce} onClick={onBack}>
          ← All events
        </button>
      </div>
      <Section title={id} className="event">
        <Answer query={query}>
          {(event) => (
            <>
              <p>
                {event.event_type} <Badge tone={TONES[event.state]}>{event.state}</Badge>
              </p>
              <ul className="fg-facts">
                <li>Received {formatDateTime(event.received_at, locale)}</li>
                {event.processed_at !== null && <li>Processed {formatDateTime(event.processed_at, locale)}</li>}
                <li>
                  {event.attempts} {event.attempts === 1 ? "attempt" : "attempts"}
                </li>
                {event.user_id !== null && <li>User {event.user_id}</li>}
                {event.error !== null && <li className="fg-bad">{event.error}</li>}
              </ul>
              <div className="fg-actions">
                <button
                  type="button"
                  className="fg-button fg-button-primary"
                  aria-disabled={replay.busy}
                  onClick={() => !replay.busy && void again()}
                >
                  {replay.busy ? "Replaying…" : "Replay"}
                </button>
                {done && <span role="status">It is processed anew; what it had done is not done twice.</span>}
              </div>
              <Refusal error={replay.error} />
              <pre className="code" tabIndex={0} role="group" aria-label="The event as it came">
                {JSON.stringify(event.payload, null, 2)}
              </pre>
            </>
          )}
        </Answer>
      </Section>
    </>
  );
}
