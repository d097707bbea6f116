/** The page's own texts, beside those of the components. */
export interface PageTexts {
  brand: string;
  sections: string;
  overview: string;
  plans: string;
  usage: string;
  history: string;
  keys: string;
  notifications: string;
  signOut: string;
  signedOutTitle: string;
  signedOutText: string;
  expiredTitle: string;
  expiredText: string;
  signInRefused: string;
  otherTitle: string;
  otherText: string;
  otherStay: string;
  otherGo: string;
  linkUsed: string;
  signingIn: string;
  signInFailed: string;
  retry: string;
  keysEmpty: string;
  keyName: string;
  keyExpires: string;
  keyNever: string;
  keyDays: (days: number) => string;
  keyCreate: string;
  keyNew: string;
  keyNewText: string;
  keyCopy: string;
  keyCopied: string;
  keyCreated: (date: string) => string;
  keyUsed: (date: string) => string;
  keyUnused: string;
  keyEnds: (date: string) => string;
  keyRevoke: string;
  keyRevokeNamed: (name: string) => string;
  keyRevokeTitle: (name: string) => string;
  keyRevokeText: string;
  keep: string;
  notificationsEmpty: string;
  markAllRead: string;
  notification: (kind: string) => string;
  feedback: string;
  feedbackText: string;
  feedbackSend: string;
  feedbackSent: string;
  feedbackScore: string;
  scores: readonly [string, string, string, string, string];
}

const KINDS_EN: Record<string, string> = {
  credits_low: "Your credits are running low.",
  credits_exhausted: "You have no credits left.",
  payment_failed: "A payment failed.",
  payment_action_required: "Your bank asks you to confirm a payment.",
  subscription_changed: "Your subscription has changed.",
  trial_ending: "Your trial ends soon.",
  key_budget_exhausted: "An API key has used up its budget.",
  account_frozen: "Your account has been frozen.",
  account_unfrozen: "Your account is usable again.",
};

const en: PageTexts = {
  brand: "Billing",
  sections: "Sections",
  overview: "Overview",
  plans: "Plans",
  usage: "Usage",
  history: "History",
  keys: "API keys",
  notifications: "Notifications",
  signOut: "Sign out",
  signedOutTitle: "You are signed out",
  signedOutText: "Open the billing page from the app that brought you here, or ask for a new link.",
  expiredTitle: "Your session has ended",
  expiredText: "Open the billing page again from the app that brought you here.",
  signInRefused: "This sign-in is not valid, or not any more. Sign in again in the app that brought you here.",
  otherTitle: "Another account",
  otherText: "You are signed in already, and what you opened is for another account. Go on with it only if you asked for it yourself: what you buy there is that account's.",
  otherStay: "Stay signed in",
  otherGo: "Switch to the other account",
  linkUsed: "This link has been used, or its time has passed. Ask for a new one where you got it.",
  signingIn: "Signing you in…",
  signInFailed: "You could not be signed in right now.",
  retry: "Try again",
  keysEmpty: "You have no API keys.",
  keyName: "Name",
  keyExpires: "Expires",
  keyNever: "Never",
  keyDays: (days) => `In ${days} days`,
  keyCreate: "Create key",
  keyNew: "Your new key",
  keyNewText: "Copy it now: it is not shown again.",
  keyCopy: "Copy",
  keyCopied: "Copied",
  keyCreated: (date) => `Created ${date}`,
  keyUsed: (date) => `last used ${date}`,
  keyUnused: "not used yet",
  keyEnds: (date) => `expires ${date}`,
  keyRevoke: "Revoke",
  keyRevokeNamed: (name) => `Revoke ${name}`,
  keyRevokeTitle: (name) => `Revoke ${name}?`,
  keyRevokeText: "What uses it stops working at once.",
  keep: "Keep it",
  notificationsEmpty: "Nothing has happened yet.",
  markAllRead: "Mark all as read",
  notification: (kind) => KINDS_EN[kind] ?? kind,
  feedback: "Feedback",
  feedbackText: "What should be better?",
  feedbackSend: "Send",
  feedbackSent: "Thank you, it has been sent.",
  feedbackScore: "How satisfied are you?",
  scores: ["Very unhappy", "Unhappy", "So-so", "Happy", "Very happy"],
};

const KINDS_NL: Record<string, string> = {
  credits_low: "Je tegoed raakt op.",
  credits_exhausted: "Je hebt geen credits meer.",
  payment_failed: "Een betaling is mislukt.",
  payment_action_required: "Je bank vraagt je een betaling te bevestigen.",
  subscription_changed: "Je abonnement is gewijzigd.",
  trial_ending: "Je proefperiode loopt bijna af.",
  key_budget_exhausted: "Een API-sleutel heeft zijn budget verbruikt.",
  account_frozen: "Je account is geblokkeerd.",
  account_unfrozen: "Je account is weer bruikbaar.",
};

const nl: PageTexts = {
  brand: "Betalen",
  sections: "Onderdelen",
  overview: "Overzicht",
  plans: "Abonnementen",
  usage: "Verbruik",
  history: "Geschiedenis",
  keys: "API-sleutels",
  notifications: "Meldingen",
  signOut: "Uitloggen",
  signedOutTitle: "Je bent uitgelogd",
  signedOutText: "Open de betaalpagina vanuit de app waar je vandaan komt, of vraag een nieuwe link.",
  expiredTitle: "Je sessie is verlopen",
  expiredText: "Open de betaalpagina opnieuw vanuit de app waar je vandaan komt.",
  signInRefused: "Deze aanmelding is niet of niet meer geldig. Meld je opnieuw aan in de app waar je vandaan komt.",
  otherTitle: "Een ander account",
  otherText: "Je bent al aangemeld, en wat je hebt geopend is voor een ander account. Ga daar alleen mee verder als je er zelf om hebt gevraagd: wat je koopt, is dan van dat account.",
  otherStay: "Aangemeld blijven",
  otherGo: "Naar het andere account",
  linkUsed: "Deze link is al gebruikt of verlopen. Vraag een nieuwe waar je hem vandaan hebt.",
  signingIn: "Je wordt ingelogd…",
  signInFailed: "Inloggen lukt op dit moment niet.",
  retry: "Opnieuw proberen",
  keysEmpty: "Je hebt geen API-sleutels.",
  keyName: "Naam",
  keyExpires: "Verloopt",
  keyNever: "Nooit",
  keyDays: (days) => `Over ${days} dagen`,
  keyCreate: "Sleutel maken",
  keyNew: "Je nieuwe sleutel",
  keyNewText: "Kopieer hem nu: hij wordt niet nog eens getoond.",
  keyCopy: "Kopiëren",
  keyCopied: "Gekopieerd",
  keyCreated: (date) => `Gemaakt op ${date}`,
  keyUsed: (date) => `laatst gebruikt op ${date}`,
  keyUnused: "nog niet gebruikt",
  keyEnds: (date) => `verloopt op ${date}`,
  keyRevoke: "Intrekken",
  keyRevokeNamed: (name) => `${name} intrekken`,
  keyRevokeTitle: (name) => `${name} intrekken?`,
  keyRevokeText: "Wat hem gebruikt werkt meteen niet meer.",
  keep: "Behouden",
  notificationsEmpty: "Er is nog niets gebeurd.",
  markAllRead: "Alles als gelezen markeren",
  notification: (kind) => KINDS_NL[kind] ?? kind,
  feedback: "Feedback",
  feedbackText: "Wat moet er beter?",
  feedbackSend: "Versturen",
  feedbackSent: "Bedankt, het is verstuurd.",
  feedbackScore: "Hoe tevreden ben je?",
  scores: ["Heel ontevreden", "Ontevreden", "Gaat wel", "Tevreden", "Heel tevreden"],
};

export function pageTexts(locale: string): PageTexts {
  return locale.toLowerCase().startsWith("nl") ? nl : en;
}
