"use client";

import { useCredits } from "../hooks/resources.js";
import { formatCredits, formatDate, title } from "../format.js";
import { useFaregate } from "../provider.js";
import { Answer, Badge, Section } from "./parts.js";

export interface CreditsDisplayProps {
  /** One line, for a header or a menu. */
  compact?: boolean;
}

/** The balance, live: what is available, in use and owed, and when the plan's credits start anew. */
export function CreditsDisplay({ compact = false }: CreditsDisplayProps) {
  const query = useCredits();
  const { texts, locale } = useFaregate();
  const credits = query.data;
  const amount = credits === undefined ? "…" : formatCredits(credits.available, locale);
  if (compact) {
    const tone = credits?.low ? " fg-pill-low" : "";
    return (
      <span className={`fg-pill${tone}`} role="status" aria-label={texts.creditsAvailable(amount)}>
        <span className="fg-pill-dot" data-live={query.live} aria-hidden="true" />
        <span aria-hidden="true">{amount}</span>
      </span>
    );
  }
  const live = query.live === "live" ? "live" : query.live === "polling" ? "polling" : undefined;
  return (
    <Section
      title={texts.credits}
      className="fg-credits"
      busy={query.status === "loading"}
      actions={
        live && <Badge tone={live === "live" ? "good" : "plain"}>{live === "live" ? texts.live : texts.notLive}</Badge>
      }
    >
      <Answer query={query} rows={2}>
        {(data) => (
          <>
            <p className="fg-balance" data-low={data.low}>
              <span aria-hidden="true" className="fg-balance-number">
                {formatCredits(data.available, locale)}
              </span>
              <span className="fg-visually-hidden" role="status">
                {texts.creditsAvailable(formatCredits(data.available, locale))}
              </span>
              {data.plan !== undefined && <Badge tone="plain">{texts.planName(title(data.plan))}</Badge>}
            </p>
            <ul className="fg-facts">
              {data.held > 0 && <li>{texts.creditsHeld(formatCredits(data.held, locale))}</li>}
              {data.debt > 0 && <li className="fg-bad">{texts.creditsDebt(formatCredits(data.debt, locale))}</li>}
              {data.resets_at && <li>{texts.creditsReset(formatDate(data.resets_at, locale))}</li>}
            </ul>
          </>
        )}
      </Answer>
    </Section>
  );
}
