/** Money, credits and dates as people of a locale write them. */

/** Currencies whose smallest unit is the whole, in Stripe's counting. */
const ZERO_DECIMAL = new Set(
  "bif clp djf gnf jpy kmf krw mga pyg rwf ugx vnd vuv xaf xof xpf".split(" "),
);
const THREE_DECIMAL = new Set("bhd jod kwd omr tnd".split(" "));

function digitsOf(code: string): number {
  return ZERO_DECIMAL.has(code) ? 0 : THREE_DECIMAL.has(code) ? 3 : 2;
}

/** An amount in the currency's smallest unit as one in its whole units, to be drawn and not to be counted with. */
export function units(amount: number, currency: string): number {
  return amount / 10 ** digitsOf(currency.toLowerCase());
}

/** An amount in the currency's smallest unit. */
export function formatMoney(amount: number, currency: string, locale: string): string {
  const code = currency.toLowerCase();
  const digits = digitsOf(code);
  const whole = amount % 10 ** digits === 0;
  return new Intl.NumberFormat(locale, {
    style: "currency",
    currency: code.toUpperCase(),
    minimumFractionDigits: whole ? 0 : digits,
    maximumFractionDigits: digits,
  }).format(units(amount, code));
}

/** Small amounts keep the digits that tell them apart. */
export function formatCredits(amount: number, locale: string): string {
  const size = Math.abs(amount);
  const digits = size >= 1_000 ? 0 : size >= 1 || size === 0 ? 2 : 6;
  return new Intl.NumberFormat(locale, { maximumFractionDigits: digits }).format(amount);
}

export function formatNumber(amount: number, locale: string): string {
  return new Intl.NumberFormat(locale, { maximumFractionDigits: 0 }).format(amount);
}

/** As short as an axis wants it: 1.2K. */
export function formatShort(amount: number, locale: string): string {
  return new Intl.NumberFormat(locale, { notation: "compact", maximumFractionDigits: 1 }).format(amount);
}

export function formatDate(time: string, locale: string): string {
  return new Intl.DateTimeFormat(locale, { dateStyle: "medium" }).format(new Date(time));
}

export function formatDateTime(time: string, locale: string): string {
  return new Intl.DateTimeFormat(locale, { dateStyle: "medium", timeStyle: "short" }).format(new Date(time));
}

/** A day such as 2026-01-31, which is UTC's whatever the reader's clock says. */
export function formatDay(day: string, locale: string): string {
  const options = { day: "numeric", month: "short", timeZone: "UTC" } as const;
  return new Intl.DateTimeFormat(locale, options).format(new Date(`${day}T00:00:00Z`));
}

/** `pro_plus` as people read it. */
export function title(name: string): string {
  const words = name.replace(/[-_]+/g, " ").trim();
  return words.charAt(0).toUpperCase() + words.slice(1);
}
