"use client";

import { useId, type ReactNode } from "react";
import { FaregateError } from "../client.js";
import { useOnline, type Query } from "../hooks/resources.js";
import { useFaregate } from "../provider.js";
import type { Texts } from "../texts.js";

/** A titled part of a page. */
export function Section({
  title,
  actions,
  children,
  className,
  busy,
}: {
  title: string;
  actions?: ReactNode;
  children: ReactNode;
  className: string;
  busy?: boolean | undefined;
}) {
  const id = useId();
  return (
    <section className={`fg-card ${className}`} aria-labelledby={id} aria-busy={busy ?? false}>
      <header className="fg-head">
        <h2 id={id} className="fg-title">
          {title}
        </h2>
        {actions}
      </header>
      {children}
    </section>
  );
}

/** Shows a question's answer, or that it is on its way, or why there is none. */
export function Answer<T>({
  query,
  children,
  rows = 3,
}: {
  query: Query<T>;
  children: (data: T) => ReactNode;
  /** Lines of the placeholder. */
  rows?: number;
}) {
  const online = useOnline();
  const { texts } = useFaregate();
  if (query.data === undefined) {
    if (query.status === "loading") return <Skeleton rows={rows} />;
    return <Failure error={query.error} onRetry={query.reload} />;
  }
  return (
    <>
      {!online || query.error?.kind === "offline" ? (
        <p className="fg-note fg-note-offline" role="status">
          {texts.offline}
        </p>
      ) : (
        query.error !== undefined && <Failure error={query.error} onRetry={query.reload} />
      )}
      {children(query.data)}
    </>
  );
}

export function Skeleton({ rows }: { rows: number }) {
  const { texts } = useFaregate();
  return (
    <div className="fg-skeleton" role="status">
      <span className="fg-visually-hidden">{texts.loading}</span>
      {Array.from({ length: rows }, (_, row) => (
        <span key={row} className="fg-bone" aria-hidden="true" />
      ))}
    </div>
  );
}

/** What went wrong, in words for people, with the request's id for who helps them. */
export function Failure({ error, onRetry }: { error: FaregateError | undefined; onRetry?: () => unknown }) {
  const { texts } = useFaregate();
  return (
    <div className="fg-note fg-note-error" role="alert">
      <p>{explain(error, texts)}</p>
      {error?.requestId && <p className="fg-request-id">{error.requestId}</p>}
      {onRetry !== undefined && error?.kind !== "forbidden" && error?.kind !== "unauthorized" && (
        <button type="button" className="fg-button" onClick={() => void onRetry()}>
          {texts.retry}
        </button>
      )}
    </div>
  );
}

function explain(error: FaregateError | undefined, texts: Texts): string {
  switch (error?.kind) {
    case "offline":
      return texts.offline;
    case "unauthorized":
      return texts.unauthorized;
    case "forbidden":
      return texts.forbidden;
    case "conflict":
      return error.message;
    case "unavailable":
      return texts.unavailable;
    default:
      return texts.error;
  }
}

export function Badge({ tone, children }: { tone: "good" | "bad" | "plain" | "warn"; children: ReactNode }) {
  return <span className={`fg-badge fg-badge-${tone}`}>{children}</span>;
}

/** A link to another site; only to addresses of the web. */
export function Outside({ href, label, children }: { href: string; label?: string; children: ReactNode }) {
  const { texts } = useFaregate();
  if (!/^https?:\/\//i.test(href)) return null;
  return (
    <a className="fg-link" href={href} target="_blank" rel="noreferrer noopener" aria-label={label}>
      {children}
      {label === undefined && <span className="fg-visually-hidden"> ({texts.opensElsewhere})</span>}
    </a>
  );
}
