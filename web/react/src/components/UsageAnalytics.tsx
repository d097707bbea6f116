"use client";

import { useId, useState } from "react";
import { dayBefore, useUsage } from "../hooks/resources.js";
import { formatCredits, formatDay, formatNumber, formatShort } from "../format.js";
import { useFaregate } from "../provider.js";
import type { UsageSum } from "../types.js";
import { BarChart } from "./BarChart.js";
import { Answer, Section } from "./parts.js";

export interface UsageAnalyticsProps {
  /** The periods to choose from, in days; the first one is shown first. */
  periods?: readonly number[];
  /** Shows what each model used, too. */
  models?: boolean;
}

const PERIODS = [30, 7, 90] as const;

/** What was used: credits by day as a chart and as a table, the sums, and the models. */
export function UsageAnalytics({ periods = PERIODS, models = true }: UsageAnalyticsProps) {
  const [days, setDays] = useState(periods[0] ?? 30);
  const query = useUsage({ days });
  const { texts } = useFaregate();
  const id = useId();
  return (
    <Section
      title={texts.usage}
      className="fg-usage"
      busy={query.status === "loading"}
      actions={
        <span className="fg-select">
          <label htmlFor={id} className="fg-visually-hidden">
            {texts.period}
          </label>
          <select id={id} value={days} onChange={(event) => setDays(Number(event.target.value))}>
            {[...periods]
              .sort((one, two) => one - two)
              .map((period) => (
                <option key={period} value={period}>
                  {texts.lastDays(period)}
                </option>
              ))}
          </select>
        </span>
      }
    >
      <Answer query={query} rows={6}>
        {({ data, complete }) => (
          <>
            {data.length === 0 ? <p className="fg-empty">{texts.usageEmpty}</p> : <Days sums={data} days={days} />}
            {!complete && (
              <p className="fg-note" role="status">
                {texts.usageIncomplete}
              </p>
            )}
            {models && data.length > 0 && <Models days={days} />}
          </>
        )}
      </Answer>
    </Section>
  );
}

/** Every day of the period, also those on which nothing happened. */
export function everyDay(sums: UsageSum[], days: number, today = new Date()): UsageSum[] {
  const known = new Map(sums.map((sum) => [sum.day, sum]));
  return Array.from({ length: days }, (_, index) => {
    const day = dayBefore(days - 1 - index, today);
    const none = { requests: 0, credits: 0, input_tokens: 0, cached_tokens: 0, output_tokens: 0, estimated: 0 };
    return known.get(day) ?? { day, ...none, errors: { "4xx": 0, "5xx": 0 } };
  });
}

function Days({ sums, days }: { sums: UsageSum[]; days: number }) {
  const { texts, locale } = useFaregate();
  const [table, showTable] = useState(false);
  const all = everyDay(sums, days);
  const sum = (of: (sum: UsageSum) => number) => all.reduce((total, one) => total + of(one), 0);
  // Whole micro-credits, so that a sum of decimals shows no rounding.
  const credits = Math.round(sum((one) => one.credits * 1e6)) / 1e6;
  const bars = all.map((one) => ({
    key: one.day ?? "",
    label: formatDay(one.day ?? "", locale),
    value: one.credits,
    text: texts.packCredits(formatCredits(one.credits, locale)),
  }));
  const label = texts.chartLabel(bars[0]?.label ?? "", bars.at(-1)?.label ?? "", formatCredits(credits, locale));
  return (
    <>
      <dl className="fg-sums">
        <Sum name={texts.credits} value={formatCredits(credits, locale)} />
        <Sum name={texts.requests} value={formatNumber(sum((one) => one.requests), locale)} />
        <Sum name={texts.tokensIn} value={formatShort(sum((one) => one.input_tokens), locale)} />
        <Sum name={texts.tokensOut} value={formatShort(sum((one) => one.output_tokens), locale)} />
      </dl>
      <BarChart bars={bars} label={label} axis={(value) => formatShort(value, locale)} />
      <button type="button" className="fg-button fg-button-quiet" aria-expanded={table} onClick={() => showTable(!table)}>
        {table ? texts.hideTable : texts.showTable}
      </button>
      {table && <SumTable sums={sums} head={texts.day} name={(one) => formatDay(one.day ?? "", locale)} />}
    </>
  );
}

function Models({ days }: { days: number }) {
  const query = useUsage({ days, groupBy: "model" });
  const { texts } = useFaregate();
  const id = useId();
  return (
    <div className="fg-models" role="group" aria-labelledby={id}>
      <h3 id={id} className="fg-subtitle">
        {texts.byModel}
      </h3>
      <Answer query={query} rows={2}>
        {({ data }) => (
          <SumTable
            sums={[...data].sort((one, two) => two.credits - one.credits)}
            head={texts.model}
            name={(one) => one.model ?? texts.noModel}
          />
        )}
      </Answer>
    </div>
  );
}

function SumTable({ sums, head, name }: { sums: UsageSum[]; head: string; name: (sum: UsageSum) => string }) {
  const { texts, locale } = useFaregate();
  return (
    <div className="fg-scroll" role="group" aria-label={head} tabIndex={0}>
      <table className="fg-table">
        <thead>
          <tr>
            <th scope="col">{head}</th>
            {[texts.credits, texts.requests, texts.tokensIn, texts.tokensOut].map((text) => (
              <th key={text} scope="col" className="fg-number">
                {text}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {sums.map((sum) => (
            <tr key={name(sum)}>
              <th scope="row">{name(sum)}</th>
              <td className="fg-number">{formatCredits(sum.credits, locale)}</td>
              <td className="fg-number">{formatNumber(sum.requests, locale)}</td>
              <td className="fg-number">{formatNumber(sum.input_tokens, locale)}</td>
              <td className="fg-number">{formatNumber(sum.output_tokens, locale)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function Sum({ name, value }: { name: string; value: string }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{value}</dd>
    </div>
  );
}
