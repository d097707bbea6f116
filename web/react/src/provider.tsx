"use client";

import { createContext, useContext, useEffect, useMemo, useRef, useState, type ReactNode } from "react";
import { FaregateClient, type ClientOptions } from "./client.js";
import { FaregateStore } from "./store.js";
import { textsFor, type Texts } from "./texts.js";

export interface FaregateProviderProps extends ClientOptions {
  /** Who is signed in, by any name that changes with the user: what was shown of one is never shown to the next. */
  user?: string | undefined;
  /** How money, numbers and dates are written, and which texts are shown: `en-GB`, `nl-NL`. */
  locale?: string | undefined;
  /** Texts to be shown instead of the built-in ones. */
  texts?: Partial<Texts> | undefined;
  /** The currency that prices are shown in first, in lower case. */
  currency?: string | undefined;
  /** `system` follows the reader's own setting. */
  theme?: "system" | "light" | "dark" | undefined;
  children?: ReactNode;
}

export interface Faregate {
  store: FaregateStore;
  client: FaregateClient;
  locale: string;
  texts: Texts;
  currency: string | undefined;
}

const Context = createContext<Faregate | null>(null);

/** What all components below share. Renders nothing of its own but a `div` that carries the theme. */
export function FaregateProvider(props: FaregateProviderProps) {
  const { baseUrl, tokenHeader, user, locale = "en", texts, currency, theme = "system", children } = props;
  // Functions and objects written in place are new at each render; what is called is the latest.
  const latest = useRef(props);
  useEffect(() => {
    latest.current = props;
  });
  const make = () =>
    new FaregateStore(
      new FaregateClient({
        baseUrl,
        tokenHeader,
        getToken: () => latest.current.getToken?.() ?? null,
        onUnauthorized: () => latest.current.onUnauthorized?.(),
        headers: props.headers,
        fetch: props.fetch,
      }),
    );
  const [kept, keep] = useState(() => ({ baseUrl, tokenHeader, user, store: make() }));
  // The old one's event stream ends with the last component that showed it.
  if (kept.baseUrl !== baseUrl || kept.tokenHeader !== tokenHeader || kept.user !== user) {
    keep({ baseUrl, tokenHeader, user, store: make() });
  }
  const { store } = kept;
  useEffect(() => {
    const online = () => store.refresh();
    window.addEventListener("online", online);
    return () => window.removeEventListener("online", online);
  }, [store]);
  const value = useMemo(
    () => ({ store, client: store.client, locale, texts: { ...textsFor(locale), ...texts }, currency }),
    [store, locale, texts, currency],
  );
  return (
    <Context.Provider value={value}>
      <div className="fg-root" data-fg-theme={theme}>
        {children}
      </div>
    </Context.Provider>
  );
}

/** The provider's own: its client, its locale, its texts. */
export function useFaregate(): Faregate {
  const value = useContext(Context);
  if (value === null) throw new Error("use it inside <FaregateProvider>");
  return value;
}
