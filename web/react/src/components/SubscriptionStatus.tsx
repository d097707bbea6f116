"use client";

import { useId, useState } from "react";
import { useAction, useSubscription } from "../hooks/resources.js";
import { formatDate, formatMoney, title } from "../format.js";
import { useFaregate } from "../provider.js";
import type { StripePage, Subscription } from "../types.js";
import { Answer, Badge, Failure, Outside, Section } from "./parts.js";
import { focusOnce, isLive } from "./PlanSelector.js";

export interface SubscriptionStatusProps {
  /** Goes to Stripe's portal; by default this window does. */
  onOpen?: ((page: StripePage) => void) | undefined;
}

/** The subscription: what it costs, when it renews or ends, what is due; to cancel, to resume, to pay. */
export function SubscriptionStatus({ onOpen }: SubscriptionStatusProps) {
  const query = useSubscription();
  const { texts } = useFaregate();
  const portal = useAction();
  const openPortal = () =>
    portal.run(async () => {
      const page = await query.portal();
      if (onOpen !== undefined) onOpen(page);
      else window.location.assign(page.url);
    });
  return (
    <Section title={texts.subscription} className="fg-subscription" busy={query.status === "loading"}>
      <Answer query={query}>
        {({ subscription, plan }) =>
          subscription === null ? (
            <p className="fg-empty">
              {texts.noSubscription} <Badge tone="plain">{texts.planName(title(plan))}</Badge>
            </p>
          ) : (
            <>
              <Details subscription={subscription} />
              <div className="fg-actions">
                {isLive(subscription) && <CancelOrResume subscription={subscription} cancel={query.cancel} resume={query.resume} />}
                <button
                  type="button"
                  className="fg-button fg-button-quiet"
                  aria-disabled={portal.busy}
                  onClick={() => !portal.busy && void openPortal()}
                >
                  {portal.busy ? texts.working : texts.portal}
                </button>
              </div>
              {portal.error !== undefined && <Failure error={portal.error} />}
            </>
          )
        }
      </Answer>
    </Section>
  );
}

const TONES: Record<string, "good" | "bad" | "warn"> = {
  active: "good",
  trialing: "good",
  past_due: "bad",
  unpaid: "bad",
  incomplete: "warn",
  paused: "warn",
};

function Details({ subscription: it }: { subscription: Subscription }) {
  const { texts, locale } = useFaregate();
  const date = (time: string) => formatDate(time, locale);
  const per = it.interval === "year" ? texts.perYear : texts.perMonth;
  const end = it.cancel_at ?? it.current_period_end;
  const ends = it.cancel_at_period_end || it.cancel_at !== null;
  return (
    <>
      <p className="fg-plan-price">
        {texts.planName(title(it.plan))}{" "}
        {it.amount !== null && (
          <span className="fg-plan-per">
            {formatMoney(it.amount, it.currency, locale)} {per}
          </span>
        )}{" "}
        <Badge tone={TONES[it.status] ?? "plain"}>{texts.status(it.status)}</Badge>
      </p>
      <ul className="fg-facts">
        {it.ended_at !== null && <li>{texts.endedOn(date(it.ended_at))}</li>}
        {isLive(it) && it.status === "trialing" && it.trial_end !== null && <li>{texts.trialEnds(date(it.trial_end))}</li>}
        {isLive(it) && ends && end !== null && <li>{texts.endsOn(date(end))}</li>}
        {isLive(it) && !ends && it.next_plan !== null && it.current_period_end !== null && (
          <li>{texts.changesTo(texts.planName(title(it.next_plan)), date(it.current_period_end))}</li>
        )}
        {isLive(it) && !ends && it.next_plan === null && it.current_period_end !== null && (
          <li>
            {it.amount === null
              ? texts.renewsPlain(date(it.current_period_end))
              : texts.renews(date(it.current_period_end), formatMoney(it.amount, it.currency, locale))}
          </li>
        )}
      </ul>
      {it.past_due_since !== null && (
        <div className="fg-note fg-note-error" role="alert">
          <p>
            {texts.pastDue} {it.grace_ends_at !== null && texts.pastDueUntil(date(it.grace_ends_at))}
          </p>
          {it.pay_url !== null && <Outside href={it.pay_url}>{texts.payNow}</Outside>}
        </div>
      )}
    </>
  );
}

function CancelOrResume({
  subscription,
  cancel,
  resume,
}: {
  subscription: Subscription;
  cancel: () => Promise<void>;
  resume: () => Promise<void>;
}) {
  const { texts, locale } = useFaregate();
  const action = useAction();
  const [asked, ask] = useState(false);
  const label = useId();
  const failure = action.error !== undefined && <Failure error={action.error} />;
  if (subscription.cancel_at_period_end || subscription.cancel_at !== null) {
    return (
      <>
        <button
          type="button"
          className="fg-button fg-button-primary"
          aria-disabled={action.busy}
          onClick={() => !action.busy && void action.run(resume)}
        >
          {action.busy ? texts.working : texts.resumeSubscription}
        </button>
        {failure}
      </>
    );
  }
  if (!asked) {
    return (
      <button type="button" className="fg-button" onClick={() => ask(true)}>
        {texts.cancelSubscription}
      </button>
    );
  }
  const confirm = async () => {
    if (await action.run(cancel)) ask(false);
  };
  return (
    <div className="fg-confirm" role="group" aria-labelledby={label}>
      <p id={label} className="fg-note-title">
        {texts.cancelTitle}
      </p>
      {subscription.current_period_end !== null && <p>{texts.cancelText(formatDate(subscription.current_period_end, locale))}</p>}
      <div className="fg-actions">
        <button type="button" className="fg-button" ref={focusOnce} onClick={() => ask(false)}>
          {texts.keepSubscription}
        </button>
        <button
          type="button"
          className="fg-button fg-button-danger"
          aria-disabled={action.busy}
          onClick={() => !action.busy && void confirm()}
        >
          {action.busy ? texts.working : texts.confirmCancel}
        </button>
      </div>
      {failure}
    </div>
  );
}
