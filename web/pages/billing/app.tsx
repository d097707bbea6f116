import {
  BillingHistory,
  CheckoutResult,
  CreditsDisplay,
  CreditsWarning,
  FaregateProvider,
  PlanSelector,
  SubscriptionStatus,
  UsageAnalytics,
  useNotifications,
} from "@faregate/react";
import { useEffect, useState } from "react";
import { facts } from "../shared/facts.js";
import { Tabs, useTab, useTitle } from "../shared/tabs.js";
import { Feedback } from "./feedback.js";
import { Keys } from "./keys.js";
import { NotificationList } from "./notifications.js";
import { again, begin, bringsSignIn, current, end, OWN_CALL, SignInError, SOMEBODY_ELSE, switchUser, type Session, type User } from "./session.js";
import { pageTexts, type PageTexts } from "./texts.js";

type Door = "opening" | "out" | "expired" | "used" | "refused" | "other" | "failed";

export function App({ locale }: { locale: string }) {
  const [session, setSession] = useState<Session>();
  const [door, setDoor] = useState<Door>("opening");
  const texts = pageTexts(locale);
  const enter = (opening: Promise<Session>) =>
    opening.then(
      (known) => {
        setSession(known);
        setDoor("out");
      },
      (error: unknown) => {
        if (!(error instanceof SignInError) || error.status >= 500) setDoor("failed");
        else if (error.status === SOMEBODY_ELSE) setDoor("other");
        else setDoor(error.by === "link" ? "used" : "refused");
      },
    );
  useEffect(() => {
    void enter(begin());
    // Another link, put into the address of a page that is open.
    const brought = () => {
      if (!bringsSignIn()) return;
      setSession(undefined);
      setDoor("opening");
      void enter(again());
    };
    window.addEventListener("hashchange", brought);
    return () => window.removeEventListener("hashchange", brought);
  }, []);
  const expires = session?.expires_at ?? null;
  useEffect(() => {
    if (expires === null) return;
    const left = new Date(expires).getTime() - Date.now();
    const timer = setTimeout(
      () => {
        setSession(undefined);
        setDoor("expired");
      },
      Math.max(0, Math.min(left, 2 ** 31 - 1)),
    );
    return () => clearTimeout(timer);
  }, [expires]);
  const signOut = () =>
    end().then(
      () => {
        setSession(undefined);
        setDoor("out");
      },
      () => setDoor("failed"),
    );
  const user = session?.user ?? null;
  // It was ended elsewhere: by an operator, or in another tab.
  const lost = () => {
    setSession(undefined);
    setDoor("expired");
  };
  return (
    <FaregateProvider baseUrl={facts().api} headers={OWN_CALL} locale={locale} user={user?.id} onUnauthorized={lost}>
      {user === null ? (
        <DoorCard
          door={door}
          texts={texts}
          retry={() => void enter(again())}
          go={() => void enter(switchUser())}
          stay={() => void enter(current())}
        />
      ) : (
        <Signed user={user} texts={texts} onSignOut={() => void signOut()} />
      )}
    </FaregateProvider>
  );
}

interface DoorProps {
  door: Door;
  texts: PageTexts;
  retry: () => void;
  go: () => void;
  stay: () => void;
}

function DoorCard({ door, texts, retry, go, stay }: DoorProps) {
  const titles: Partial<Record<Door, string>> = { opening: texts.brand, expired: texts.expiredTitle, other: texts.otherTitle };
  const title = titles[door] ?? texts.signedOutTitle;
  const words: Record<Door, string> = {
    opening: texts.signingIn,
    out: texts.signedOutText,
    expired: texts.expiredText,
    used: texts.linkUsed,
    refused: texts.signInRefused,
    other: texts.otherText,
    failed: texts.signInFailed,
  };
  useTitle(texts.brand);
  return (
    <main className="door">
      <div className="fg-card">
        <h1 className="fg-title">{title}</h1>
        <p role={door === "opening" || door === "out" ? "status" : "alert"}>{words[door]}</p>
        {door === "failed" && (
          <button type="button" className="fg-button fg-button-primary" onClick={retry}>
            {texts.retry}
          </button>
        )}
        {door === "other" && (
          <div className="fg-actions">
            <button type="button" className="fg-button fg-button-primary" onClick={stay}>
              {texts.otherStay}
            </button>
            <button type="button" className="fg-button" onClick={go}>
              {texts.otherGo}
            </button>
          </div>
        )}
      </div>
    </main>
  );
}

const ALL = ["overview", "plans", "usage", "history", "keys", "notifications"] as const;
type Tab = (typeof ALL)[number];

function Signed({ user, texts, onSignOut }: { user: User; texts: PageTexts; onSignOut: () => void }) {
  const { sells = false } = facts();
  const tabs: readonly Tab[] = sells ? ALL : ALL.filter((tab) => tab !== "plans" && tab !== "history");
  const tab = useTab(tabs);
  useTitle(`${texts[tab]} – ${texts.brand}`);
  const { unread } = useNotifications();
  const names: Record<Tab, React.ReactNode> = {
    ...(Object.fromEntries(tabs.map((name) => [name, texts[name]])) as Record<Tab, string>),
    notifications: (
      <>
        {texts.notifications} {unread > 0 && <span className="count">{unread}</span>}
      </>
    ),
  };
  return (
    <>
      <header className="bar">
        <div className="bar-in">
          <div className="bar-top">
            <h1 className="brand">{texts.brand}</h1>
            <CreditsDisplay compact />
            <span className="who">{user.email ?? user.id}</span>
            <button type="button" className="fg-button" onClick={onSignOut}>
              {texts.signOut}
            </button>
          </div>
          <Tabs tabs={tabs} current={tab} names={names} label={texts.sections} />
        </div>
      </header>
      <main className="main stack">
        <CheckoutResult />
        {tab !== "plans" && <CreditsWarning onUpgrade={sells ? () => (window.location.hash = "plans") : undefined} />}
        {tab === "overview" && (
          <>
            <div className={sells ? "pair" : "stack"}>
              <CreditsDisplay />
              {sells && <SubscriptionStatus />}
            </div>
            <UsageAnalytics models={false} />
          </>
        )}
        {tab === "plans" && <PlanSelector />}
        {tab === "usage" && <UsageAnalytics />}
        {tab === "history" && <BillingHistory />}
        {tab === "keys" && <Keys texts={texts} />}
        {tab === "notifications" && <NotificationList texts={texts} />}
      </main>
      <footer className="foot">
        <Feedback texts={texts} />
      </footer>
    </>
  );
}
