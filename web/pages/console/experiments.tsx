import { formatMoney, formatNumber, useFaregate } from "@faregate/react";
import { Answer, Badge, Section } from "../../react/src/components/parts.js";
import { useList } from "./list.js";

interface Variant {
  name: string;
  weight: number;
  users: number;
  converted: number;
  percent: number | null;
  revenue: { currency: string; purchases: number; net: number }[];
}

interface Experiment {
  name: string;
  plan: string;
  active: boolean;
  variants: Variant[];
}

/** Terms of a plan that are tried out, and what came of each. */
export function Experiments() {
  const query = useList<Experiment>("/experiments?limit=500");
  return (
    <Section title="Experiments" className="experiments">
      <Answer query={query} rows={5}>
        {({ data }) =>
          data.length === 0 ? (
            <p className="fg-empty">No experiments are in the settings.</p>
          ) : (
            data.map((one) => <OneExperiment key={one.name} it={one} />)
          )
        }
      </Answer>
    </Section>
  );
}

function OneExperiment({ it }: { it: Experiment }) {
  const { locale } = useFaregate();
  const weights = it.variants.reduce((sum, variant) => sum + variant.weight, 0);
  const number = (value: number) => formatNumber(value, locale);
  return (
    <div className="stack">
      <h3 className="fg-subtitle">
        {it.name} <Badge tone="plain">plan {it.plan}</Badge>{" "}
        <Badge tone={it.active ? "good" : "plain"}>{it.active ? "running" : "no new users"}</Badge>
      </h3>
      <div className="fg-scroll" role="group" aria-label={it.name} tabIndex={0}>
        <table className="fg-table">
          <thead>
            <tr>
              <th scope="col">Variant</th>
              {["Share", "Users", "Paid", "Paid, %", "Net revenue"].map((head) => (
                <th key={head} scope="col" className="fg-number">
                  {head}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {it.variants.map((variant) => (
              <tr key={variant.name}>
                <th scope="row">{variant.name}</th>
                <td className="fg-number">{weights > 0 ? `${number((100 * variant.weight) / weights)}%` : "–"}</td>
                <td className="fg-number">{number(variant.users)}</td>
                <td className="fg-number">{number(variant.converted)}</td>
                <td className="fg-number">{variant.percent ?? "–"}</td>
                <td className="fg-number">
                  {variant.revenue.map((row) => formatMoney(row.net, row.currency, locale)).join(", ") || "–"}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </div>
  );
}
