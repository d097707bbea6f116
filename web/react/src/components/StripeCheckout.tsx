"use client";

import { useEffect, useRef, useState, type ReactNode } from "react";
import { useAction, useCredits, useSubscriptionActions } from "../hooks/resources.js";
import { formatCredits } from "../format.js";
import { useFaregate } from "../provider.js";
import type { CheckoutOrder, StripePage } from "../types.js";
import { Failure } from "./parts.js";

export interface StripeCheckoutProps extends CheckoutOrder {
  children?: ReactNode;
  /** Goes to Stripe's page; by default this window does. */
  onOpen?: ((page: StripePage) => void) | undefined;
  primary?: boolean;
}

/** A button that opens Stripe's page for a plan or a pack. Card data never touches this page. */
export function StripeCheckout({ plan, pack, interval, currency, children, onOpen, primary = true }: StripeCheckoutProps) {
  const { checkout } = useSubscriptionActions();
  const { texts, store } = useFaregate();
  const credits = store.credits();
  const action = useAction();
  const [leaving, leave] = useState(false);
  const open = () =>
    action.run(async () => {
      const order: CheckoutOrder = {};
      if (plan !== undefined) order.plan = plan;
      if (pack !== undefined) order.pack = pack;
      if (interval !== undefined) order.interval = interval;
      if (currency !== undefined) order.currency = currency;
      const page = await checkout(order);
      if (onOpen !== undefined) return onOpen(page);
      leave(true);
      remember(credits.snapshot().data?.available);
      window.location.assign(page.url);
    });
  const busy = action.busy || leaving;
  // Back from Stripe by the browser's own cache, the page is as it was left.
  useEffect(() => {
    const shown = (event: PageTransitionEvent) => event.persisted && leave(false);
    window.addEventListener("pageshow", shown);
    return () => window.removeEventListener("pageshow", shown);
  }, []);
  return (
    <div className="fg-checkout">
      <button
        type="button"
        className={primary ? "fg-button fg-button-primary" : "fg-button"}
        aria-disabled={busy}
        onClick={() => !busy && void open()}
      >
        {busy ? texts.openingCheckout : (children ?? texts.checkout)}
      </button>
      {action.error !== undefined && <Failure error={action.error} />}
    </div>
  );
}

const BEFORE = "faregate-before-checkout";

/** What there was before, so that it can be told when there is more; a browser may keep nothing. */
function remember(available: number | undefined): void {
  try {
    if (available !== undefined) window.sessionStorage.setItem(BEFORE, String(available));
  } catch {
    // Then what is seen first stands for it.
  }
}

function remembered(): number | undefined {
  try {
    const kept = window.sessionStorage.getItem(BEFORE);
    return kept === null ? undefined : Number(kept);
  } catch {
    return undefined;
  }
}

export interface CheckoutResultProps {
  /** What Stripe's page came back with; by default read from the address, once. */
  result?: "success" | "cancelled" | undefined;
}

/** Says how a checkout ended, and when the credits are there. Shows nothing otherwise. */
export function CheckoutResult({ result }: CheckoutResultProps) {
  const { texts, locale } = useFaregate();
  const [found, find] = useState<"success" | "cancelled" | undefined>(result);
  useEffect(() => {
    if (result !== undefined) return find(result);
    const address = new URL(window.location.href);
    const told = address.searchParams.get("checkout");
    if (told !== "success" && told !== "cancelled") return;
    find(told);
    // A reload says nothing again.
    for (const name of ["checkout", "session_id"]) address.searchParams.delete(name);
    window.history.replaceState(window.history.state, "", address);
  }, [result]);
  if (found === undefined) return null;
  return (
    <div className="fg-note" data-result={found} role="status">
      <p className="fg-note-title">{found === "success" ? texts.checkoutSuccess : texts.checkoutCancelled}</p>
      {found === "success" ? <Arrival locale={locale} /> : <p>{texts.checkoutCancelledText}</p>}
      <button type="button" className="fg-button fg-button-quiet" onClick={() => find(undefined)}>
        {texts.dismiss}
      </button>
    </div>
  );
}

function Arrival({ locale }: { locale: string }) {
  const { texts } = useFaregate();
  const { data } = useCredits();
  const first = useRef<number | undefined>(undefined);
  if (first.current === undefined && data !== undefined) first.current = remembered() ?? data.available;
  const arrived = data !== undefined && first.current !== undefined && data.available > first.current;
  return <p>{arrived ? texts.checkoutArrived(formatCredits(data.available, locale)) : texts.checkoutSuccessText}</p>;
}
