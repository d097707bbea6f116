/** Every text that the components show. Replace any of them by the provider's `texts`. */

export interface Texts {
  loading: string;
  retry: string;
  error: string;
  offline: string;
  unauthorized: string;
  forbidden: string;
  unavailable: string;
  billingUnavailable: string;
  close: string;
  cancel: string;
  more: string;
  planName: (name: string) => string;

  credits: string;
  creditsAvailable: (amount: string) => string;
  creditsHeld: (amount: string) => string;
  creditsDebt: (amount: string) => string;
  creditsReset: (date: string) => string;
  live: string;
  notLive: string;

  warningLow: string;
  warningLowText: (amount: string) => string;
  warningEmpty: string;
  warningEmptyText: string;
  warningAction: string;
  dismiss: string;

  plans: string;
  plansEmpty: string;
  packs: string;
  interval: string;
  month: string;
  year: string;
  perMonth: string;
  perYear: string;
  free: string;
  currentPlan: string;
  nextPlan: string;
  choosePlan: (plan: string) => string;
  switchPlan: (plan: string) => string;
  buyPack: (pack: string) => string;
  packExpires: (days: number) => string;
  packNeverExpires: string;
  packCredits: (amount: string) => string;
  planCredits: (amount: string) => string;
  planSignupCredits: (amount: string) => string;
  planRollover: (amount: string) => string;
  planTrial: (days: number) => string;
  planRequests: (count: string) => string;
  planTokens: (count: string) => string;
  planConcurrency: (count: string) => string;
  changeTitle: (plan: string) => string;
  changeNow: (amount: string) => string;
  changeNowFree: string;
  changeLater: string;
  confirmChange: string;
  changing: string;
  changed: string;

  openingCheckout: string;
  checkout: string;
  checkoutSuccess: string;
  checkoutSuccessText: string;
  checkoutArrived: (amount: string) => string;
  checkoutCancelled: string;
  checkoutCancelledText: string;

  subscription: string;
  noSubscription: string;
  status: (status: string) => string;
  renews: (date: string, amount: string) => string;
  renewsPlain: (date: string) => string;
  trialEnds: (date: string) => string;
  endsOn: (date: string) => string;
  endedOn: (date: string) => string;
  changesTo: (plan: string, date: string) => string;
  pastDue: string;
  pastDueUntil: (date: string) => string;
  payNow: string;
  cancelSubscription: string;
  cancelTitle: string;
  cancelText: (date: string) => string;
  keepSubscription: string;
  confirmCancel: string;
  resumeSubscription: string;
  working: string;
  portal: string;

  history: string;
  historyEmpty: string;
  date: string;
  description: string;
  amount: string;
  state: string;
  documents: string;
  paymentKind: (kind: string, number: string | null) => string;
  paymentStatus: (status: string) => string;
  viewInvoice: string;
  downloadPdf: string;
  opensElsewhere: string;

  usage: string;
  usageEmpty: string;
  usageIncomplete: string;
  period: string;
  lastDays: (days: number) => string;
  requests: string;
  tokensIn: string;
  tokensOut: string;
  model: string;
  noModel: string;
  day: string;
  byModel: string;
  showTable: string;
  hideTable: string;
  chartLabel: (from: string, to: string, total: string) => string;
}

const STATUS_EN: Record<string, string> = {
  active: "Active",
  trialing: "Trial",
  past_due: "Payment due",
  unpaid: "Unpaid",
  paused: "Paused",
  canceled: "Ended",
  incomplete: "Payment incomplete",
  incomplete_expired: "Payment not completed",
};

const PAID_EN: Record<string, string> = {
  paid: "Paid",
  open: "Open",
  draft: "Draft",
  void: "Void",
  uncollectible: "Not collected",
  refunded: "Refunded",
  disputed: "Disputed",
};

export const en: Texts = {
  loading: "Loading…",
  retry: "Try again",
  error: "This could not be loaded.",
  offline: "You are offline. What you see may be out of date.",
  unauthorized: "Your session has ended. Sign in again.",
  forbidden: "This account may not do that. Ask the operator of this service.",
  unavailable: "The service does not answer right now.",
  billingUnavailable: "Nothing is sold here yet.",
  close: "Close",
  cancel: "Cancel",
  more: "Show more",
  planName: (name) => name,

  credits: "Credits",
  creditsAvailable: (amount) => `${amount} credits available`,
  creditsHeld: (amount) => `${amount} in use right now`,
  creditsDebt: (amount) => `${amount} owed; new credits pay this first`,
  creditsReset: (date) => `Plan credits reset on ${date}`,
  live: "Live",
  notLive: "Reconnecting…",

  warningLow: "You are running low on credits",
  warningLowText: (amount) => `${amount} credits are left.`,
  warningEmpty: "You have no credits left",
  warningEmptyText: "Choose a plan or buy credits to go on.",
  warningAction: "See plans",
  dismiss: "Dismiss",

  plans: "Plans",
  plansEmpty: "There are no plans to choose from.",
  packs: "Buy credits once",
  interval: "Billing period",
  month: "Monthly",
  year: "Yearly",
  perMonth: "a month",
  perYear: "a year",
  free: "Free",
  currentPlan: "Your plan",
  nextPlan: "Your next plan",
  choosePlan: (plan) => `Choose ${plan}`,
  switchPlan: (plan) => `Switch to ${plan}`,
  buyPack: (pack) => `Buy ${pack}`,
  packExpires: (days) => `Use within ${days} days`,
  packNeverExpires: "Does not expire",
  packCredits: (amount) => `${amount} credits`,
  planCredits: (amount) => `${amount} credits a month`,
  planSignupCredits: (amount) => `${amount} credits to begin with`,
  planRollover: (amount) => `Up to ${amount} unused credits move to the next month`,
  planTrial: (days) => `${days} days free`,
  planRequests: (count) => `${count} requests a minute`,
  planTokens: (count) => `${count} tokens a minute`,
  planConcurrency: (count) => `${count} requests at a time`,
  changeTitle: (plan) => `Switch to ${plan}?`,
  changeNow: (amount) => `It starts now. ${amount} is charged today.`,
  changeNowFree: "It starts now. Nothing is charged today.",
  changeLater: "It starts when the period that is paid ends. Nothing is charged today.",
  confirmChange: "Confirm",
  changing: "Changing…",
  changed: "Your plan has been changed.",

  openingCheckout: "Opening checkout…",
  checkout: "Go to checkout",
  checkoutSuccess: "Thank you",
  checkoutSuccessText: "Your payment is complete. The credits arrive in a moment.",
  checkoutArrived: (amount) => `Your credits are here: ${amount} are available.`,
  checkoutCancelled: "Checkout was cancelled",
  checkoutCancelledText: "Nothing was charged.",

  subscription: "Subscription",
  noSubscription: "You have no subscription.",
  status: (status) => STATUS_EN[status] ?? status,
  renews: (date, amount) => `Renews on ${date} for ${amount}`,
  renewsPlain: (date) => `Renews on ${date}`,
  trialEnds: (date) => `Your trial ends on ${date}`,
  endsOn: (date) => `Ends on ${date}`,
  endedOn: (date) => `Ended on ${date}`,
  changesTo: (plan, date) => `Changes to ${plan} on ${date}`,
  pastDue: "Your last payment failed.",
  pastDueUntil: (date) => `Your plan's credits stay usable until ${date}.`,
  payNow: "Pay now",
  cancelSubscription: "Cancel subscription",
  cancelTitle: "Cancel your subscription?",
  cancelText: (date) => `It stays active until ${date}. You can resume it until then.`,
  keepSubscription: "Keep it",
  confirmCancel: "Cancel it",
  resumeSubscription: "Resume subscription",
  working: "Working…",
  portal: "Payment method and invoices",

  history: "Billing history",
  historyEmpty: "Nothing has been billed yet.",
  date: "Date",
  description: "Description",
  amount: "Amount",
  state: "Status",
  documents: "Documents",
  paymentKind: (kind, number) => (kind === "pack" ? "Credits" : number === null ? "Invoice" : `Invoice ${number}`),
  paymentStatus: (status) => PAID_EN[status] ?? status,
  viewInvoice: "View",
  downloadPdf: "PDF",
  opensElsewhere: "opens in a new tab",

  usage: "Usage",
  usageEmpty: "Nothing has been used in this period.",
  usageIncomplete: "The latest requests are still being added up.",
  period: "Period",
  lastDays: (days) => `Last ${days} days`,
  requests: "Requests",
  tokensIn: "Tokens in",
  tokensOut: "Tokens out",
  model: "Model",
  noModel: "No model",
  day: "Day",
  byModel: "By model",
  showTable: "Show as table",
  hideTable: "Hide table",
  chartLabel: (from, to, total) => `Credits used each day from ${from} to ${to}, ${total} in all`,
};

const STATUS_NL: Record<string, string> = {
  active: "Actief",
  trialing: "Proefperiode",
  past_due: "Betaling open",
  unpaid: "Onbetaald",
  paused: "Gepauzeerd",
  canceled: "Beëindigd",
  incomplete: "Betaling niet voltooid",
  incomplete_expired: "Betaling niet voltooid",
};

const PAID_NL: Record<string, string> = {
  paid: "Betaald",
  open: "Open",
  draft: "Concept",
  void: "Vervallen",
  uncollectible: "Niet geïnd",
  refunded: "Terugbetaald",
  disputed: "Betwist",
};

export const nl: Texts = {
  loading: "Laden…",
  retry: "Opnieuw proberen",
  error: "Dit kon niet worden geladen.",
  offline: "Je bent offline. Wat je ziet kan verouderd zijn.",
  unauthorized: "Je sessie is verlopen. Log opnieuw in.",
  forbidden: "Dit account mag dat niet. Vraag het de beheerder van deze dienst.",
  unavailable: "De dienst antwoordt op dit moment niet.",
  billingUnavailable: "Hier wordt nog niets verkocht.",
  close: "Sluiten",
  cancel: "Annuleren",
  more: "Meer tonen",
  planName: (name) => name,

  credits: "Tegoed",
  creditsAvailable: (amount) => `${amount} credits beschikbaar`,
  creditsHeld: (amount) => `${amount} nu in gebruik`,
  creditsDebt: (amount) => `${amount} schuld; nieuwe credits betalen die eerst`,
  creditsReset: (date) => `Credits van je abonnement vernieuwen op ${date}`,
  live: "Live",
  notLive: "Opnieuw verbinden…",

  warningLow: "Je tegoed raakt op",
  warningLowText: (amount) => `Er zijn nog ${amount} credits over.`,
  warningEmpty: "Je hebt geen credits meer",
  warningEmptyText: "Kies een abonnement of koop credits om door te gaan.",
  warningAction: "Bekijk abonnementen",
  dismiss: "Verbergen",

  plans: "Abonnementen",
  plansEmpty: "Er zijn geen abonnementen om uit te kiezen.",
  packs: "Eenmalig credits kopen",
  interval: "Betaalperiode",
  month: "Maandelijks",
  year: "Jaarlijks",
  perMonth: "per maand",
  perYear: "per jaar",
  free: "Gratis",
  currentPlan: "Jouw abonnement",
  nextPlan: "Je volgende abonnement",
  choosePlan: (plan) => `Kies ${plan}`,
  switchPlan: (plan) => `Overstappen naar ${plan}`,
  buyPack: (pack) => `Koop ${pack}`,
  packExpires: (days) => `Binnen ${days} dagen te gebruiken`,
  packNeverExpires: "Verloopt niet",
  packCredits: (amount) => `${amount} credits`,
  planCredits: (amount) => `${amount} credits per maand`,
  planSignupCredits: (amount) => `${amount} credits om te beginnen`,
  planRollover: (amount) => `Tot ${amount} ongebruikte credits gaan mee naar de volgende maand`,
  planTrial: (days) => `${days} dagen gratis`,
  planRequests: (count) => `${count} verzoeken per minuut`,
  planTokens: (count) => `${count} tokens per minuut`,
  planConcurrency: (count) => `${count} verzoeken tegelijk`,
  changeTitle: (plan) => `Overstappen naar ${plan}?`,
  changeNow: (amount) => `Het gaat nu in. Vandaag wordt ${amount} afgeschreven.`,
  changeNowFree: "Het gaat nu in. Vandaag wordt niets afgeschreven.",
  changeLater: "Het gaat in als de betaalde periode eindigt. Vandaag wordt niets afgeschreven.",
  confirmChange: "Bevestigen",
  changing: "Bezig…",
  changed: "Je abonnement is gewijzigd.",

  openingCheckout: "Betaalpagina openen…",
  checkout: "Naar de betaalpagina",
  checkoutSuccess: "Bedankt",
  checkoutSuccessText: "Je betaling is voltooid. De credits komen er zo aan.",
  checkoutArrived: (amount) => `Je credits zijn er: ${amount} beschikbaar.`,
  checkoutCancelled: "De betaling is geannuleerd",
  checkoutCancelledText: "Er is niets afgeschreven.",

  subscription: "Abonnement",
  noSubscription: "Je hebt geen abonnement.",
  status: (status) => STATUS_NL[status] ?? status,
  renews: (date, amount) => `Wordt op ${date} verlengd voor ${amount}`,
  renewsPlain: (date) => `Wordt op ${date} verlengd`,
  trialEnds: (date) => `Je proefperiode eindigt op ${date}`,
  endsOn: (date) => `Eindigt op ${date}`,
  endedOn: (date) => `Geëindigd op ${date}`,
  changesTo: (plan, date) => `Wordt op ${date} ${plan}`,
  pastDue: "Je laatste betaling is mislukt.",
  pastDueUntil: (date) => `De credits van je abonnement blijven bruikbaar tot ${date}.`,
  payNow: "Nu betalen",
  cancelSubscription: "Abonnement opzeggen",
  cancelTitle: "Je abonnement opzeggen?",
  cancelText: (date) => `Het blijft actief tot ${date}. Tot dan kun je het hervatten.`,
  keepSubscription: "Behouden",
  confirmCancel: "Opzeggen",
  resumeSubscription: "Abonnement hervatten",
  working: "Bezig…",
  portal: "Betaalmethode en facturen",

  history: "Betaalgeschiedenis",
  historyEmpty: "Er is nog niets in rekening gebracht.",
  date: "Datum",
  description: "Omschrijving",
  amount: "Bedrag",
  state: "Status",
  documents: "Documenten",
  paymentKind: (kind, number) => (kind === "pack" ? "Credits" : number === null ? "Factuur" : `Factuur ${number}`),
  paymentStatus: (status) => PAID_NL[status] ?? status,
  viewInvoice: "Bekijken",
  downloadPdf: "PDF",
  opensElsewhere: "opent in een nieuw tabblad",

  usage: "Verbruik",
  usageEmpty: "In deze periode is niets verbruikt.",
  usageIncomplete: "De laatste verzoeken worden nog opgeteld.",
  period: "Periode",
  lastDays: (days) => `Laatste ${days} dagen`,
  requests: "Verzoeken",
  tokensIn: "Tokens in",
  tokensOut: "Tokens uit",
  model: "Model",
  noModel: "Geen model",
  day: "Dag",
  byModel: "Per model",
  showTable: "Als tabel tonen",
  hideTable: "Tabel verbergen",
  chartLabel: (from, to, total) => `Verbruikte credits per dag van ${from} tot ${to}, ${total} in totaal`,
};

/** The texts of a locale; English where there are none in its language. */
export function textsFor(locale: string): Texts {
  return locale.toLowerCase().startsWith("nl") ? nl : en;
}
