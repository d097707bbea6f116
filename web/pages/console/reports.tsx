import { units } from "../../react/src/format.js";
import { BarChart, formatCredits, formatDay, formatMoney, formatNumber, formatShort, useFaregate } from "@faregate/react";
import { useState, type ReactNode } from "react";
import { Answer, Section } from "../../react/src/components/parts.js";
import { dayBefore, useResource } from "../../react/src/hooks/resources.js";

interface Sums {
  messages: number;
  credits: number;
  input_tokens: number;
  output_tokens: number;
  client_errors: number;
  server_errors: number;
}

interface UsageReport {
  totals: Sums;
  users: { total: number; new: number; active: number; heavy: number; returning: number; near_limit: number; exhausted: number };
  conversion: { signed_up: number; paid: number; percent: number | null; first_paid: number };
  days: (Sums & { day: string; active_users: number })[];
  plans: (Sums & { plan: string; users: number; active_users: number })[];
  models: (Sums & { model: string | null; other: boolean })[];
}

interface RevenueReport {
  mrr: { plan: string; currency: string; subscriptions: number; amount: number }[];
  trials: number;
  past_due: number;
  payers: number;
  totals: { currency: string; purchases: number; amount: number; refunded: number; net: number }[];
  months: { month: string; currency: string; kind: string; name: string; purchases: number; net: number }[];
  credits: { sold: number; given: number; used: number; outstanding: { total: number }; debt: number };
}

const PERIODS = [7, 30, 90, 365];

/** How the product is used, and what it brings. */
export function Reports() {
  const [days, setDays] = useState(30);
  return (
    <>
      <label className="field">
        Period
        <select value={days} onChange={(event) => setDays(Number(event.target.value))}>
          {PERIODS.map((days) => (
            <option key={days} value={days}>
              Last {days} days
            </option>
          ))}
        </select>
      </label>
      <Usage key={`u${days}`} days={days} />
      <Revenue key={`r${days}`} days={days} />
    </>
  );
}

function useReport<T>(name: string, days: number) {
  const { store, client } = useFaregate();
  const path = `/reports/${name}?from=${dayBefore(days - 1)}`;
  return useResource(store.resource(path, () => client.get<T>(path)));
}

function Download({ name, days }: { name: string; days: number }) {
  const { client } = useFaregate();
  const save = async () => {
    const response = await client.open(`/reports/${name}?from=${dayBefore(days - 1)}&format=csv`, {});
    const url = URL.createObjectURL(await response.blob());
    const link = Object.assign(document.createElement("a"), { href: url, download: `${name}.csv` });
    link.click();
    URL.revokeObjectURL(url);
  };
  return (
    <button type="button" className="fg-button" onClick={() => void save()}>
      CSV
    </button>
  );
}

/** The days on which nothing happened, too. */
function everyDay<T extends { day: string }>(rows: T[], days: number): { day: string; row: T | undefined }[] {
  const known = new Map(rows.map((row) => [row.day, row]));
  return Array.from({ length: days }, (_, index) => dayBefore(days - 1 - index)).map((day) => ({ day, row: known.get(day) }));
}

function Usage({ days }: { days: number }) {
  const query = useReport<UsageReport>("usage", days);
  const { locale } = useFaregate();
  return (
    <Section title="Usage" className="report" actions={<Download name="usage" days={days} />}>
      <Answer query={query} rows={6}>
        {({ totals, users, conversion, days: rows, plans, models }) => (
          <>
            <Facts
              facts={[
                ["Messages", formatNumber(totals.messages, locale)],
                ["Credits", formatCredits(totals.credits, locale)],
                ["Tokens", formatShort(totals.input_tokens + totals.output_tokens, locale)],
                ["Active users", formatNumber(users.active, locale)],
                ["New", formatNumber(users.new, locale)],
                ["Returning", formatNumber(users.returning, locale)],
                ["Heavy", formatNumber(users.heavy, locale)],
                ["Near their limit", formatNumber(users.near_limit, locale)],
                ["Out of credits", formatNumber(users.exhausted, locale)],
                ["New who paid", `${conversion.paid} of ${conversion.signed_up}${conversion.percent === null ? "" : ` (${conversion.percent}%)`}`],
              ]}
            />
            {rows.length > 0 && (
              <BarChart
                bars={everyDay(rows, days).map(({ day, row }) => ({
                  key: day,
                  label: formatDay(day, locale),
                  value: row?.credits ?? 0,
                  text: `${formatCredits(row?.credits ?? 0, locale)} credits, ${formatNumber(row?.messages ?? 0, locale)} messages, ${row?.active_users ?? 0} users`,
                }))}
                label={`Credits used by day, ${formatCredits(totals.credits, locale)} in all`}
                axis={(value) => formatShort(value, locale)}
              />
            )}
            <Table
              label="Usage by plan"
              head={["Plan", "Users", "Active", "Messages", "Credits"]}
              rows={plans.map((plan) => [plan.plan, plan.users, plan.active_users, plan.messages, formatCredits(plan.credits, locale)])}
            />
            <Table
              label="Usage by model"
              head={["Model", "Messages", "Tokens in", "Tokens out", "Credits"]}
              rows={models.map((model) => [
                model.other ? "others" : (model.model ?? "none"),
                model.messages,
                formatShort(model.input_tokens, locale),
                formatShort(model.output_tokens, locale),
                formatCredits(model.credits, locale),
              ])}
            />
          </>
        )}
      </Answer>
    </Section>
  );
}

function Revenue({ days }: { days: number }) {
  const query = useReport<RevenueReport>("revenue", days);
  const { locale } = useFaregate();
  const money = (amount: number, currency: string) => formatMoney(amount, currency, locale);
  return (
    <Section title="Revenue" className="report" actions={<Download name="revenue" days={days} />}>
      <Answer query={query} rows={6}>
        {({ mrr, totals, months, credits, payers, trials, past_due }) => {
          const currencies = [...new Set(mrr.map((row) => row.currency))];
          const recurring = currencies.map((currency): [string, string] => [
            `Monthly recurring, ${currency.toUpperCase()}`,
            money(
              mrr.filter((row) => row.currency === currency).reduce((sum, row) => sum + row.amount, 0),
              currency,
            ),
          ]);
          const first = currencies[0] ?? totals[0]?.currency;
          const byMonth = new Map<string, number>();
          for (const row of months.filter((row) => row.currency === first)) {
            byMonth.set(row.month, (byMonth.get(row.month) ?? 0) + row.net);
          }
          return (
            <>
              <Facts
                facts={[
                  ...recurring,
                  ...totals.map((row): [string, string] => [`Net, ${row.currency.toUpperCase()}`, money(row.net, row.currency)]),
                  ["Payers", formatNumber(payers, locale)],
                  ["Trials", formatNumber(trials, locale)],
                  ["Past due", formatNumber(past_due, locale)],
                  ["Credits sold", formatCredits(credits.sold, locale)],
                  ["Credits used", formatCredits(credits.used, locale)],
                  ["Outstanding", formatCredits(credits.outstanding.total, locale)],
                ]}
              />
              {first !== undefined && byMonth.size > 0 && (
                <BarChart
                  bars={[...byMonth].map(([month, net]) => ({ key: month, label: month, value: units(net, first), text: money(net, first) }))}
                  label={`Net revenue by month in ${first.toUpperCase()}`}
                  axis={(value) => formatShort(value, locale)}
                />
              )}
              <Table
                label="Recurring revenue by plan"
                head={["Plan", "Subscriptions", "A month"]}
                rows={mrr.map((row) => [row.plan, row.subscriptions, money(row.amount, row.currency)])}
              />
              <Table
                label="Sold by month"
                head={["Month", "What", "Sold", "Net"]}
                rows={months.map((row) => [row.month, `${row.kind} ${row.name}`, row.purchases, money(row.net, row.currency)])}
              />
            </>
          );
        }}
      </Answer>
    </Section>
  );
}

function Facts({ facts }: { facts: [string, string][] }) {
  return (
    <dl className="fg-sums">
      {facts.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

function Table({ label, head, rows }: { label: string; head: string[]; rows: ReactNode[][] }) {
  if (rows.length === 0) return null;
  return (
    <div className="fg-scroll" role="group" aria-label={label} tabIndex={0}>
      <table className="fg-table">
        <thead>
          <tr>
            {head.map((name, column) => (
              <th key={name} scope="col" className={column > 0 ? "fg-number" : undefined}>
                {name}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map((row, index) => (
            <tr key={index}>
              {row.map((cell, column) => (
                <td key={column} className={column > 0 ? "fg-number" : undefined}>
                  {cell}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
