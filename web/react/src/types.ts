/** What the gateway's API answers. Credits are numbers with at most six decimals; times are RFC 3339, UTC. */

export interface Credits {
  available: number;
  held: number;
  debt: number;
  low: boolean;
  plan?: string;
  /** When the soonest of the plan's own credits end. */
  resets_at?: string | null;
  /** What moved them, where the event stream told. */
  reason?: string;
}

export type Interval = "month" | "year";

export interface Price {
  currency: string;
  interval?: Interval;
  /** In the currency's smallest unit. */
  amount: number;
}

export interface Plan {
  name: string;
  signup_credits: number;
  /** For each paid month. */
  credits: number;
  rollover_cap: number;
  trial_days: number;
  trial_credits: number;
  requests_per_minute: number;
  tokens_per_minute: number;
  concurrency: number;
  prices: Price[];
}

export interface Pack {
  name: string;
  credits: number;
  /** 0: never. */
  expires_after_days: number;
  prices: Price[];
}

export interface Offers {
  plans: Plan[];
  packs: Pack[];
}

export interface Subscription {
  id: string;
  plan: string;
  /** In Stripe's words: active, trialing, past_due, paused, canceled, … */
  status: string;
  interval: Interval | null;
  currency: string;
  amount: number | null;
  current_period_start: string | null;
  current_period_end: string | null;
  trial_end: string | null;
  cancel_at_period_end: boolean;
  cancel_at: string | null;
  ended_at: string | null;
  next_plan: string | null;
  past_due_since: string | null;
  grace_ends_at: string | null;
  pay_url: string | null;
}

export interface Standing {
  plan: string;
  subscription: Subscription | null;
}

export interface ChangePreview {
  takes_effect: "now" | "period_end";
  amount_due: number;
  currency: string;
}

export interface Payment {
  id: string;
  kind: "invoice" | "pack";
  number: string | null;
  status: string;
  amount: number;
  currency: string;
  created_at: string;
  hosted_url: string | null;
  pdf_url: string | null;
}

export interface UsageSum {
  day?: string;
  model?: string | null;
  route?: string;
  key?: string | null;
  requests: number;
  credits: number;
  input_tokens: number;
  cached_tokens: number;
  output_tokens: number;
  estimated: number;
  errors: { "4xx": number; "5xx": number };
}

export interface UsageReport {
  data: UsageSum[];
  next: string | null;
  /** `false`: some fresh usage is not in yet. */
  complete: boolean;
}

export interface Notification {
  /** Of this user, rising. */
  id: number;
  kind: string;
  data: Record<string, unknown>;
  created_at: string;
  read_at: string | null;
}

export interface List<T> {
  data: T[];
  next: string | null;
}

export interface CheckoutOrder {
  plan?: string;
  pack?: string;
  interval?: Interval;
  currency?: string;
}

/** A page at Stripe. */
export interface StripePage {
  id: string;
  url: string;
}
