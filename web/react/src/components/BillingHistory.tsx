"use client";

import { useAction, useBillingHistory } from "../hooks/resources.js";
import { formatDate, formatMoney } from "../format.js";
import { useFaregate } from "../provider.js";
import type { Payment } from "../types.js";
import { Answer, Badge, Failure, Outside, Section } from "./parts.js";

export interface BillingHistoryProps {
  /** Payments shown at first, and with each "more". */
  pageSize?: number;
}

const TONES: Record<string, "good" | "bad" | "warn"> = {
  paid: "good",
  open: "warn",
  uncollectible: "bad",
  disputed: "bad",
};

/** What was paid, newest first, with invoices to open and to keep. */
export function BillingHistory({ pageSize = 10 }: BillingHistoryProps) {
  const query = useBillingHistory(pageSize);
  const { texts } = useFaregate();
  const action = useAction();
  return (
    <Section title={texts.history} className="fg-history" busy={query.status === "loading"}>
      <Answer query={query}>
        {({ data }) =>
          data.length === 0 ? (
            <p className="fg-empty">{texts.historyEmpty}</p>
          ) : (
            <>
              <Payments payments={data} />
              {query.more !== undefined && (
                <button
                  type="button"
                  className="fg-button"
                  aria-disabled={action.busy}
                  onClick={() => !action.busy && query.more && void action.run(query.more)}
                >
                  {action.busy ? texts.loading : texts.more}
                </button>
              )}
              {action.error !== undefined && <Failure error={action.error} />}
            </>
          )
        }
      </Answer>
    </Section>
  );
}

function Payments({ payments }: { payments: Payment[] }) {
  const { texts, locale } = useFaregate();
  return (
    <table className="fg-table fg-table-stacks">
      <thead>
        <tr>
          <th scope="col">{texts.date}</th>
          <th scope="col">{texts.description}</th>
          <th scope="col" className="fg-number">
            {texts.amount}
          </th>
          <th scope="col">{texts.state}</th>
          <th scope="col">{texts.documents}</th>
        </tr>
      </thead>
      <tbody>
        {payments.map((payment) => {
          const what = texts.paymentKind(payment.kind, payment.number);
          return (
            <tr key={payment.id}>
              <td data-label={texts.date}>{formatDate(payment.created_at, locale)}</td>
              <th scope="row" data-label={texts.description}>
                {what}
              </th>
              <td data-label={texts.amount} className="fg-number">
                {formatMoney(payment.amount, payment.currency, locale)}
              </td>
              <td data-label={texts.state}>
                <Badge tone={TONES[payment.status] ?? "plain"}>{texts.paymentStatus(payment.status)}</Badge>
              </td>
              <td data-label={texts.documents}>
                <span className="fg-links">
                  {payment.hosted_url !== null && (
                    <Outside href={payment.hosted_url} label={`${texts.viewInvoice} ${what} (${texts.opensElsewhere})`}>
                      {texts.viewInvoice}
                    </Outside>
                  )}
                  {payment.pdf_url !== null && (
                    <Outside href={payment.pdf_url} label={`${texts.downloadPdf} ${what} (${texts.opensElsewhere})`}>
                      {texts.downloadPdf}
                    </Outside>
                  )}
                  {payment.hosted_url === null && payment.pdf_url === null && "–"}
                </span>
              </td>
            </tr>
          );
        })}
      </tbody>
    </table>
  );
}
