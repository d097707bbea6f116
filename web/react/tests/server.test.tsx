// @vitest-environment node
import { renderToString } from "react-dom/server";
import { expect, it } from "vitest";
import {
  BillingHistory,
  CheckoutResult,
  CreditsDisplay,
  CreditsWarning,
  FaregateProvider,
  PlanSelector,
  StripeCheckout,
  SubscriptionStatus,
  UsageAnalytics,
} from "../src/index.js";

it("renders on a server, and asks nothing there", () => {
  const html = renderToString(
    <FaregateProvider
      baseUrl="/api"
      fetch={() => {
        throw new Error("asked on the server");
      }}
    >
      <CreditsDisplay />
      <CreditsDisplay compact />
      <CreditsWarning />
      <PlanSelector />
      <StripeCheckout plan="pro" />
      <CheckoutResult />
      <SubscriptionStatus />
      <BillingHistory />
      <UsageAnalytics />
    </FaregateProvider>,
  );
  expect(html).toContain("Loading…");
  expect(html).toContain("Go to checkout");
});
