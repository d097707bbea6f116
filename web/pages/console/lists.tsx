import { formatDateTime, useFaregate } from "@faregate/react";
import { useState } from "react";
import { Answer, Section } from "../../react/src/components/parts.js";
import { useList, useSettled } from "./list.js";

type Row = Record<string, unknown>;

/** What is not worth a place in a table. */
const HIDDEN = new Set(["id"]);
/** Longer texts take several lines. */
const LONG = 24;

/** Rows of whatever fields they have. */
function Rows({ path, empty, label }: { path: string; empty: string; label: string }) {
  const query = useList<Row>(path);
  const { locale } = useFaregate();
  return (
    <Answer query={query} rows={5}>
      {({ data }) => {
        const head = [...new Set(data.flatMap((row) => Object.keys(row)))].filter((name) => !HIDDEN.has(name));
        if (data.length === 0) return <p className="fg-empty">{empty}</p>;
        return (
          <>
            <div className="fg-scroll" role="group" aria-label={label} tabIndex={0}>
              <table className="fg-table">
                <thead>
                  <tr>
                    {head.map((name) => (
                      <th key={name} scope="col">
                        {name.replace(/_/g, " ")}
                      </th>
                    ))}
                  </tr>
                </thead>
                <tbody>
                  {data.map((row, index) => (
                    <tr key={String(row["id"] ?? index)}>
                      {head.map((name) => (
                        <td key={name} className={cell(row[name], locale).length > LONG ? "fg-wrap" : undefined}>
                          {cell(row[name], locale)}
                        </td>
                      ))}
                    </tr>
                  ))}
                </tbody>
              </table>
            </div>
            {query.more !== undefined && (
              <button type="button" className="fg-button" onClick={() => void query.more?.().catch(query.reload)}>
                Show more
              </button>
            )}
          </>
        );
      }}
    </Answer>
  );
}

function cell(value: unknown, locale: string): string {
  if (value === null || value === undefined || value === "") return "–";
  if (typeof value === "string" && /^\d{4}-\d\d-\d\dT/.test(value)) return formatDateTime(value, locale);
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

export function Audit() {
  const [text, type] = useState("");
  const user = useSettled(text.trim());
  const path = user === "" ? "/audit?limit=50" : `/audit?limit=50&user=${encodeURIComponent(user)}`;
  return (
    <Section title="Audit log" className="audit">
      <label className="field">
        Of one user, by their id
        <input className="fg-input" type="search" value={text} maxLength={128} onChange={(event) => type(event.target.value)} />
      </label>
      <Rows key={path} path={path} empty="Nothing has been done." label="Audit log" />
    </Section>
  );
}

export function FeedbackList() {
  return (
    <Section title="Feedback" className="feedback">
      <Rows path="/feedback?limit=50" empty="No feedback yet." label="Feedback" />
    </Section>
  );
}
