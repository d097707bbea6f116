"use client";

import { useId, useState } from "react";
import { useAction, usePlans, useSubscription, useSubscriptionActions } from "../hooks/resources.js";
import { formatCredits, formatMoney, formatNumber, title } from "../format.js";
import { useFaregate } from "../provider.js";
import type { ChangePreview, Interval, Pack, Plan, Price, Standing, StripePage, Subscription } from "../types.js";
import { Answer, Badge, Failure, Section } from "./parts.js";
import { StripeCheckout } from "./StripeCheckout.js";

export interface PlanSelectorProps {
  /** Shows credits that are bought once, too. */
  packs?: boolean | undefined;
  /** Goes to Stripe's page; by default this window does. */
  onOpen?: ((page: StripePage) => void) | undefined;
}

/** The plans on offer, with the user's own marked: to choose one, to switch, or to buy credits once. */
export function PlanSelector({ packs = true, onOpen }: PlanSelectorProps) {
  const query = usePlans();
  const standing = useSubscription();
  const { texts } = useFaregate();
  const [chosen, choose] = useState<Interval>();
  const live = standing.data?.subscription ?? undefined;
  const current = live && isLive(live) ? live : undefined;
  if (query.data === undefined) {
    return (
      <Section title={texts.plans} className="fg-plans" busy={query.status === "loading"}>
        <Answer query={query} rows={6}>
          {() => null}
        </Answer>
      </Section>
    );
  }
  return (
    <Answer query={query}>
      {(offers) => {
        const mine = standing.data?.plan;
        const sold = offers.plans.filter((plan) => plan.prices.length > 0 || plan.name === mine).sort(byPrice);
        const intervals = intervalsOf(sold);
        const interval = chosen ?? current?.interval ?? intervals[0] ?? "month";
        return (
          <>
            <Section
              title={texts.plans}
              className="fg-plans"
              actions={intervals.length > 1 && <IntervalChoice value={interval} onChange={choose} />}
            >
              {sold.length === 0 ? (
                <p className="fg-empty">{texts.plansEmpty}</p>
              ) : (
                <ul className="fg-plan-list">
                  {sold.map((plan) => (
                    <PlanCard
                      key={plan.name}
                      plan={plan}
                      interval={interval}
                      standing={standing.data}
                      current={current}
                      onOpen={onOpen}
                    />
                  ))}
                </ul>
              )}
            </Section>
            {packs && offers.packs.length > 0 && (
              <Section title={texts.packs} className="fg-packs">
                <ul className="fg-plan-list">
                  {offers.packs.map((pack) => (
                    <PackCard key={pack.name} pack={pack} onOpen={onOpen} />
                  ))}
                </ul>
              </Section>
            )}
          </>
        );
      }}
    </Answer>
  );
}

export function isLive(subscription: Subscription): boolean {
  return !["canceled", "incomplete_expired", "incomplete"].includes(subscription.status);
}

/** The cheapest first, by the month. */
function byPrice(one: Plan, two: Plan): number {
  const monthly = ({ prices }: Plan) => Math.min(...prices.map((price) => price.amount / (price.interval === "year" ? 12 : 1)));
  const price = (plan: Plan) => (plan.prices.length === 0 ? 0 : monthly(plan));
  return price(one) - price(two);
}

function intervalsOf(plans: Plan[]): Interval[] {
  const found = new Set(plans.flatMap((plan) => plan.prices.map((price) => price.interval)));
  return (["month", "year"] as const).filter((interval) => found.has(interval));
}

/** The price in this interval: in the subscription's currency, or the reader's, or the first there is. */
function priceOf(prices: Price[], interval: Interval | undefined, currency: string | undefined): Price | undefined {
  const fitting = prices.filter((price) => interval === undefined || price.interval === interval);
  return fitting.find((price) => price.currency === currency?.toLowerCase()) ?? fitting[0];
}

function IntervalChoice({ value, onChange }: { value: Interval; onChange: (interval: Interval) => void }) {
  const { texts } = useFaregate();
  const name = useId();
  return (
    <fieldset className="fg-switch">
      <legend className="fg-visually-hidden">{texts.interval}</legend>
      {(["month", "year"] as const).map((interval) => (
        <label key={interval} data-on={value === interval}>
          <input type="radio" name={name} checked={value === interval} onChange={() => onChange(interval)} />
          {texts[interval]}
        </label>
      ))}
    </fieldset>
  );
}

interface CardProps {
  plan: Plan;
  interval: Interval;
  standing: Standing | undefined;
  current: Subscription | undefined;
  onOpen: PlanSelectorProps["onOpen"];
}

function PlanCard({ plan, interval, standing, current, onOpen }: CardProps) {
  const { texts, locale, currency } = useFaregate();
  const name = texts.planName(title(plan.name));
  const price = priceOf(plan.prices, interval, current?.currency ?? currency);
  const mine = standing?.plan === plan.name && (current === undefined || current.interval === (price?.interval ?? current.interval));
  const next = current?.next_plan === plan.name;
  return (
    <li className="fg-plan" data-current={mine}>
      <h3 className="fg-plan-name">
        {name}
        {mine && <Badge tone="good">{texts.currentPlan}</Badge>}
        {next && <Badge tone="plain">{texts.nextPlan}</Badge>}
      </h3>
      <p className="fg-plan-price">
        {price === undefined ? (
          texts.free
        ) : (
          <>
            {formatMoney(price.amount, price.currency, locale)}{" "}
            <span className="fg-plan-per">{price.interval === "year" ? texts.perYear : texts.perMonth}</span>
          </>
        )}
      </p>
      <PlanFacts plan={plan} />
      {!mine && price !== undefined && standing !== undefined && !next && (
        <div className="fg-plan-action">
          {current === undefined ? (
            <StripeCheckout plan={plan.name} interval={price.interval ?? "month"} currency={price.currency} onOpen={onOpen}>
              {texts.choosePlan(name)}
            </StripeCheckout>
          ) : (
            <PlanChange plan={plan.name} name={name} interval={price.interval ?? "month"} />
          )}
        </div>
      )}
    </li>
  );
}

function PlanFacts({ plan }: { plan: Plan }) {
  const { texts, locale } = useFaregate();
  const facts = [
    plan.credits > 0 && texts.planCredits(formatCredits(plan.credits, locale)),
    plan.credits === 0 && plan.signup_credits > 0 && texts.planSignupCredits(formatCredits(plan.signup_credits, locale)),
    plan.rollover_cap > 0 && texts.planRollover(formatCredits(plan.rollover_cap, locale)),
    plan.trial_days > 0 && texts.planTrial(plan.trial_days),
    plan.requests_per_minute > 0 && texts.planRequests(formatNumber(plan.requests_per_minute, locale)),
    plan.tokens_per_minute > 0 && texts.planTokens(formatNumber(plan.tokens_per_minute, locale)),
    plan.concurrency > 0 && texts.planConcurrency(formatNumber(plan.concurrency, locale)),
  ].filter((fact): fact is string => typeof fact === "string");
  return (
    <ul className="fg-facts fg-plan-facts">
      {facts.map((fact) => (
        <li key={fact}>{fact}</li>
      ))}
    </ul>
  );
}

/** Switching costs something: what it does is said before it is done. */
function PlanChange({ plan, name, interval }: { plan: string; name: string; interval: Interval }) {
  const { preview, change } = useSubscriptionActions();
  const { texts, locale } = useFaregate();
  const asking = useAction();
  const [told, tell] = useState<ChangePreview>();
  const label = useId();
  const ask = () => asking.run(async () => tell(await preview(plan, interval)));
  const confirm = async () => {
    if (await asking.run(() => change(plan, interval))) tell(undefined);
  };
  if (told === undefined) {
    return (
      <>
        <button type="button" className="fg-button" aria-disabled={asking.busy} onClick={() => !asking.busy && void ask()}>
          {asking.busy ? texts.working : texts.switchPlan(name)}
        </button>
        {asking.error !== undefined && <Failure error={asking.error} />}
      </>
    );
  }
  const cost = told.amount_due > 0 ? texts.changeNow(formatMoney(told.amount_due, told.currency, locale)) : texts.changeNowFree;
  return (
    <div className="fg-confirm" role="group" aria-labelledby={label}>
      <p id={label} className="fg-note-title">
        {texts.changeTitle(name)}
      </p>
      <p role="status">{told.takes_effect === "now" ? cost : texts.changeLater}</p>
      <div className="fg-actions">
        <button
          type="button"
          className="fg-button fg-button-primary"
          // The question takes the place of the button that asked it.
          ref={focusOnce}
          aria-disabled={asking.busy}
          onClick={() => !asking.busy && void confirm()}
        >
          {asking.busy ? texts.changing : texts.confirmChange}
        </button>
        <button type="button" className="fg-button fg-button-quiet" onClick={() => tell(undefined)}>
          {texts.cancel}
        </button>
      </div>
      {asking.error !== undefined && <Failure error={asking.error} />}
    </div>
  );
}

/** Moves the focus to what has just appeared in answer to a click. */
export function focusOnce(element: HTMLElement | null): void {
  element?.focus({ preventScroll: true });
}

function PackCard({ pack, onOpen }: { pack: Pack; onOpen: PlanSelectorProps["onOpen"] }) {
  const { texts, locale, currency } = useFaregate();
  const price = priceOf(pack.prices, undefined, currency);
  const name = texts.planName(title(pack.name));
  return (
    <li className="fg-plan">
      <h3 className="fg-plan-name">{name}</h3>
      <p className="fg-plan-price">{price && formatMoney(price.amount, price.currency, locale)}</p>
      <ul className="fg-facts fg-plan-facts">
        <li>{texts.packCredits(formatCredits(pack.credits, locale))}</li>
        <li>{pack.expires_after_days > 0 ? texts.packExpires(pack.expires_after_days) : texts.packNeverExpires}</li>
      </ul>
      {price !== undefined && (
        <div className="fg-plan-action">
          <StripeCheckout pack={pack.name} currency={price.currency} onOpen={onOpen} primary={false}>
            {texts.buyPack(name)}
          </StripeCheckout>
        </div>
      )}
    </li>
  );
}
