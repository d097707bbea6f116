import { BarChart, formatCredits, formatNumber, formatShort, useFaregate } from "@faregate/react";
import { useRef } from "react";
import { Badge, Section, Skeleton } from "../../react/src/components/parts.js";
import { parse, total, type Metrics } from "./metrics.js";
import { usePoll } from "./poll.js";

const POLL_MS = 2_000;
/** Readings that are kept and drawn. */
const KEPT = 60;

async function ask(signal: AbortSignal): Promise<{ at: number; metrics: Metrics }> {
  const response = await fetch("/metrics", { signal, cache: "no-store" });
  if (!response.ok) throw new Error(`HTTP ${response.status}`);
  return { at: Date.now(), metrics: parse(await response.text()) };
}

interface Point {
  at: number;
  requests: number;
  credits: number;
}

/** What this replica does right now: its own metrics, read again and again. */
export function Live() {
  const { data, failed } = usePoll(ask, POLL_MS);
  const { locale } = useFaregate();
  const last = useRef<{ at: number; metrics: Metrics } | undefined>(undefined);
  const points = useRef<Point[]>([]);
  if (data !== undefined && data !== last.current) {
    const before = last.current;
    last.current = data;
    if (before !== undefined) {
      const seconds = Math.max(0.001, (data.at - before.at) / 1_000);
      const rate = (name: string, labels = {}) =>
        Math.max(0, total(data.metrics, name, labels) - total(before.metrics, name, labels)) / seconds;
      points.current.push({
        at: data.at,
        requests: rate("faregate_requests_total"),
        credits: rate("faregate_credits_micro_total", { what: "settled" }) / 1e6,
      });
      points.current = points.current.slice(-KEPT);
    }
  }
  if (data === undefined) return failed ? <Away /> : <Skeleton rows={6} />;
  const { metrics } = data;
  const gauges: [string, string][] = [
    ["Connections", formatNumber(total(metrics, "faregate_client_connections"), locale)],
    ["Streams", formatNumber(total(metrics, "faregate_streams"), locale)],
    ["Holds in flight", formatNumber(total(metrics, "faregate_holds_in_flight"), locale)],
    ["Events not yet stored", formatNumber(total(metrics, "faregate_outbox_backlog"), locale)],
    ["Requests since start", formatShort(total(metrics, "faregate_requests_total"), locale)],
    ["Credits settled", formatShort(total(metrics, "faregate_credits_micro_total", { what: "settled" }) / 1e6, locale)],
  ];
  const now = points.current.at(-1);
  return (
    <>
      {failed && <Away />}
      <Section
        title="Right now"
        className="live"
        actions={<Badge tone={failed ? "bad" : "good"}>{failed ? "Out of reach" : "Live"}</Badge>}
      >
        <dl className="fg-sums">
          {gauges.map(([name, value]) => (
            <div key={name}>
              <dt>{name}</dt>
              <dd>{value}</dd>
            </div>
          ))}
        </dl>
      </Section>
      <div className="pair">
        <Rate title="Requests a second" now={now?.requests} points={points.current} of={(point) => point.requests} />
        <Rate title="Credits settled a second" now={now?.credits} points={points.current} of={(point) => point.credits} />
      </div>
      <Outcomes metrics={metrics} />
    </>
  );
}

function Away() {
  return (
    <p className="fg-note fg-note-offline" role="status">
      The gateway does not answer; what is shown is the last that it told.
    </p>
  );
}

function Rate({
  title,
  now,
  points,
  of,
}: {
  title: string;
  now: number | undefined;
  points: Point[];
  of: (point: Point) => number;
}) {
  const { locale } = useFaregate();
  const time = new Intl.DateTimeFormat(locale, { timeStyle: "medium" });
  const empty = Array.from({ length: KEPT - points.length }, (_, index) => ({ key: `e${index}`, label: "", value: 0, text: "" }));
  const bars = points.map((point) => ({
    key: String(point.at),
    label: time.format(point.at),
    value: of(point),
    text: formatCredits(of(point), locale),
  }));
  return (
    <Section title={title} className="rate" actions={<strong>{now === undefined ? "…" : formatCredits(now, locale)}</strong>}>
      <BarChart bars={[...empty, ...bars]} label={`${title}, the last two minutes`} axis={(value) => formatShort(value, locale)} />
    </Section>
  );
}

function Outcomes({ metrics }: { metrics: Metrics }) {
  const { locale } = useFaregate();
  const samples = [...(metrics.get("faregate_requests_total") ?? [])].filter((sample) => sample.value > 0);
  samples.sort((one, two) => two.value - one.value);
  return (
    <Section title="Requests by route and outcome, since start" className="outcomes">
      {samples.length === 0 ? (
        <p className="fg-empty">No requests yet.</p>
      ) : (
        <div className="fg-scroll" role="group" aria-label="Requests by route and outcome" tabIndex={0}>
          <table className="fg-table">
            <thead>
              <tr>
                <th scope="col">Route</th>
                <th scope="col">Outcome</th>
                <th scope="col" className="fg-number">
                  Requests
                </th>
              </tr>
            </thead>
            <tbody>
              {samples.map(({ labels, value }) => (
                <tr key={`${labels["route"]} ${labels["outcome"]}`}>
                  <th scope="row">{labels["route"]}</th>
                  <td>{labels["outcome"]}</td>
                  <td className="fg-number">{formatNumber(value, locale)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </Section>
  );
}
