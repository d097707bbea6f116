export { FaregateProvider, useFaregate, type Faregate, type FaregateProviderProps } from "./provider.js";
export { FaregateClient, FaregateError, type ClientOptions, type FailureKind } from "./client.js";
export {
  useBillingHistory,
  useCredits,
  useNotifications,
  usePlans,
  useSubscription,
  useSubscriptionActions,
  useUsage,
  type Notifications,
  type Pages,
  type Query,
  type SubscriptionActions,
  type UsageQuestion,
} from "./hooks/resources.js";
export { BillingHistory, type BillingHistoryProps } from "./components/BillingHistory.js";
export { BarChart, type Bar, type BarChartProps } from "./components/BarChart.js";
export { CreditsDisplay, type CreditsDisplayProps } from "./components/CreditsDisplay.js";
export { CreditsWarning, type CreditsWarningProps } from "./components/CreditsWarning.js";
export { PlanSelector, type PlanSelectorProps } from "./components/PlanSelector.js";
export {
  CheckoutResult,
  StripeCheckout,
  type CheckoutResultProps,
  type StripeCheckoutProps,
} from "./components/StripeCheckout.js";
export { SubscriptionStatus, type SubscriptionStatusProps } from "./components/SubscriptionStatus.js";
export { UsageAnalytics, type UsageAnalyticsProps } from "./components/UsageAnalytics.js";
export { en, nl, textsFor, type Texts } from "./texts.js";
export { formatCredits, formatDate, formatDateTime, formatDay, formatMoney, formatNumber, formatShort } from "./format.js";
export type * from "./types.js";
