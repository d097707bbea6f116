import { FaregateProvider } from "@faregate/react";
import { useEffect, useState } from "react";
import { Failure } from "../../react/src/components/parts.js";
import { useAction } from "../../react/src/hooks/resources.js";
import { facts } from "../shared/facts.js";
import { Tabs, useTab, useTitle } from "../shared/tabs.js";
import { Events } from "./events.js";
import { Health } from "./health.js";
import { Experiments } from "./experiments.js";
import { Audit, FeedbackList } from "./lists.js";
import { Live } from "./live.js";
import { Reports } from "./reports.js";
import { call, OWN_CALL, type Session } from "./session.js";
import { Users } from "./users.js";

const TABS = ["live", "users", "events", "reports", "experiments", "feedback", "audit", "health"] as const;
type Tab = (typeof TABS)[number];

const NAMES: Record<Tab, string> = {
  live: "Live",
  users: "Users",
  events: "Stripe events",
  reports: "Reports",
  experiments: "Experiments",
  feedback: "Feedback",
  audit: "Audit log",
  health: "Health",
};

const LOCALE = navigator.language || "en";
const NOBODY: Session = { signed_in: false, expires_at: null };
/** Browsers take a longer one for none at all. */
const MAX_TIMER_MS = 2 ** 31 - 1;

export function App() {
  const [session, setSession] = useState<Session>();
  const [failed, fail] = useState<unknown>();
  useEffect(() => {
    call("GET").then(setSession, fail);
  }, []);
  const expires = session?.expires_at ?? null;
  useEffect(() => {
    if (expires === null) return;
    const left = new Date(expires).getTime() - Date.now();
    const timer = setTimeout(() => setSession(NOBODY), Math.max(0, Math.min(left, MAX_TIMER_MS)));
    return () => clearTimeout(timer);
  }, [expires]);
  return (
    <FaregateProvider baseUrl={facts().api} headers={OWN_CALL} locale={LOCALE} onUnauthorized={() => setSession(NOBODY)}>
      {session?.signed_in ? (
        <Console onSignOut={() => void call("DELETE").then(setSession, fail)} />
      ) : (
        <SignIn asking={session === undefined && failed === undefined} onSignedIn={setSession} />
      )}
    </FaregateProvider>
  );
}

function SignIn({ asking, onSignedIn }: { asking: boolean; onSignedIn: (session: Session) => void }) {
  const [token, type] = useState("");
  const action = useAction();
  useTitle("Sign in – Faregate console");
  const submit = () => action.run(async () => onSignedIn(await call("POST", { token })));
  return (
    <main className="door">
      <div className="fg-card">
        <h1 className="fg-title">Faregate console</h1>
        {!asking && (
          <form
            className="stack"
            onSubmit={(event) => {
              event.preventDefault();
              if (!action.busy && token !== "") void submit();
            }}
          >
            {/* A password manager keeps the token under this name. */}
            <input type="text" name="username" autoComplete="username" defaultValue="operator" hidden readOnly />
            <label className="field">
              Admin token
              <input
                className="fg-input"
                type="password"
                autoComplete="current-password"
                required
                value={token}
                onChange={(event) => type(event.target.value)}
              />
            </label>
            <button type="submit" className="fg-button fg-button-primary" aria-disabled={action.busy}>
              Sign in
            </button>
            {action.error?.kind === "unauthorized" ? (
              <p className="fg-note fg-note-error" role="alert">
                This token does not open the console.
              </p>
            ) : (
              action.error !== undefined && <Failure error={action.error} />
            )}
            <p className="soft">It is in the settings (admin_token), or in the file admin-token of the data directory.</p>
          </form>
        )}
      </div>
    </main>
  );
}

function Console({ onSignOut }: { onSignOut: () => void }) {
  const tab = useTab(TABS);
  useTitle(`${NAMES[tab]} – Faregate console`);
  return (
    <>
      <header className="bar">
        <div className="bar-in">
          <div className="bar-top">
            <h1 className="brand">Faregate console</h1>
            <span className="who">{facts().version}</span>
            <button type="button" className="fg-button" onClick={onSignOut}>
              Sign out
            </button>
          </div>
          <Tabs tabs={TABS} current={tab} names={NAMES} label="Sections" />
        </div>
      </header>
      <main className="main stack">
        {tab === "live" && <Live />}
        {tab === "users" && <Users />}
        {tab === "events" && <Events />}
        {tab === "reports" && <Reports />}
        {tab === "experiments" && <Experiments />}
        {tab === "feedback" && <FeedbackList />}
        {tab === "audit" && <Audit />}
        {tab === "health" && <Health />}
      </main>
    </>
  );
}
