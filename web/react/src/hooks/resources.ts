"use client";

import { useCallback, useEffect, useState, useSyncExternalStore } from "react";
import { FaregateError } from "../client.js";
import { useFaregate } from "../provider.js";
import type { LiveState, Resource, Snapshot } from "../store.js";
import type {
  ChangePreview,
  CheckoutOrder,
  Credits,
  Interval,
  List,
  Notification,
  Offers,
  Payment,
  Standing,
  StripePage,
  UsageReport,
} from "../types.js";

/** `crypto.randomUUID` is there only over TLS and on localhost. */
function randomId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** An answer, and how to ask again. */
export interface Query<T> extends Snapshot<T> {
  reload: () => Promise<void>;
}

const SERVER_SNAPSHOT: Snapshot<never> = { status: "loading", data: undefined, error: undefined, refreshing: false };
const serverSnapshot = () => SERVER_SNAPSHOT;

/** Shows a resource. On a server it is always loading: nothing is asked while rendering. */
export function useResource<T>(resource: Resource<T>): Query<T> {
  const snapshot = useSyncExternalStore(resource.subscribe, resource.snapshot, serverSnapshot as () => Snapshot<T>);
  return { ...snapshot, reload: resource.reload };
}

/** The balance, live. `live` tells whether the event stream stands; without it the balance is asked for now and then. */
export function useCredits(): Query<Credits> & { live: LiveState } {
  const { store } = useFaregate();
  const query = useResource(store.credits());
  const live = useSyncExternalStore(store.onLive, store.liveState, () => "off" as const);
  return { ...query, live };
}

/** The plans and packs on offer. */
export function usePlans(): Query<Offers> {
  const { store, client } = useFaregate();
  return useResource(store.resource("plans", () => client.get<Offers>("/plans")));
}

/** What a subscriber may do. Each answers when it is done, and fails with a `FaregateError`. */
export interface SubscriptionActions {
  checkout: (order: CheckoutOrder) => Promise<StripePage>;
  portal: (flow?: "payment_method" | "cancel") => Promise<StripePage>;
  preview: (plan: string, interval?: Interval) => Promise<ChangePreview>;
  change: (plan: string, interval?: Interval) => Promise<void>;
  cancel: () => Promise<void>;
  resume: () => Promise<void>;
}

/** The plan and the subscription, live. */
export function useSubscription(): Query<Standing> & SubscriptionActions {
  const { store } = useFaregate();
  return { ...useResource(store.standing()), ...useSubscriptionActions() };
}

/** What a subscriber may do, without showing the subscription. */
export function useSubscriptionActions(): SubscriptionActions {
  const { store, client } = useFaregate();
  const [actions] = useState((): SubscriptionActions => {
    const path = "/billing/subscription";
    const stands = (standing: Standing) => {
      store.standing().set(standing);
      store.refresh("history");
      store.refresh("credits");
    };
    const body = (plan: string, interval?: Interval) => (interval === undefined ? { plan } : { plan, interval });
    return {
      checkout: (order) => client.post("/billing/checkout", order, randomId()),
      portal: (flow) => client.post("/billing/portal", flow === undefined ? {} : { flow }),
      preview: (plan, interval) => client.post(path, { ...body(plan, interval), preview: true }),
      change: (plan, interval) =>
        client.post<Standing>(path, body(plan, interval), randomId()).then(stands),
      cancel: () => client.delete<Standing>(path).then(stands),
      resume: () => client.post<Standing>(path, { resume: true }, randomId()).then(stands),
    };
  });
  return actions;
}

/** A list that grows page by page. */
export interface Pages<T> extends Query<List<T>> {
  /** `undefined` at the end. */
  more: (() => Promise<void>) | undefined;
}

/** What was paid, newest first. */
export function useBillingHistory(pageSize = 10): Pages<Payment> {
  const { store, client } = useFaregate();
  const path = `/billing/history?limit=${pageSize}`;
  const resource = store.resource(`history ${pageSize}`, () => client.get<List<Payment>>(path));
  const query = useResource(resource);
  const next = query.data?.next ?? null;
  const more = useCallback(async () => {
    if (next === null) return;
    const page = await client.get<List<Payment>>(`${path}&cursor=${encodeURIComponent(next)}`);
    resource.update((list) => ({ data: [...list.data, ...page.data], next: page.next }));
  }, [client, resource, path, next]);
  return { ...query, more: next === null ? undefined : more };
}

export interface UsageQuestion {
  /** Whole days up to today, UTC. */
  days: number;
  groupBy?: "day" | "model" | "day,model" | "route" | undefined;
}

/** Usage added up over the last days. */
export function useUsage({ days, groupBy = "day" }: UsageQuestion): Query<UsageReport> {
  const { store, client } = useFaregate();
  const load = () => {
    const from = dayBefore(days - 1);
    return client.get<UsageReport>(`/usage?group_by=${encodeURIComponent(groupBy)}&from=${from}&limit=500`);
  };
  return useResource(store.resource(`usage ${groupBy} ${days}`, load));
}

/** The day so many days before today, UTC: 2026-01-31. */
export function dayBefore(days: number, today = new Date()): string {
  return new Date(today.getTime() - days * 86_400_000).toISOString().slice(0, 10);
}

export interface Notifications extends Query<List<Notification>> {
  unread: number;
  /** Marks these as read, or all of them. */
  markRead: (ids?: number[]) => Promise<void>;
}

/** What happened to the account, newest first, live. */
export function useNotifications(): Notifications {
  const { store, client } = useFaregate();
  const resource = store.notifications();
  const query = useResource(resource);
  const markRead = useCallback(
    async (ids?: number[]) => {
      await client.patch("/notifications", ids === undefined ? { all: true, read: true } : { ids, read: true });
      const now = new Date().toISOString();
      resource.update((list) => ({
        ...list,
        data: list.data.map((one) =>
          one.read_at === null && (ids === undefined || ids.includes(one.id)) ? { ...one, read_at: now } : one,
        ),
      }));
    },
    [client, resource],
  );
  const unread = query.data?.data.filter((one) => one.read_at === null).length ?? 0;
  return { ...query, unread, markRead };
}

/** Whether the browser has a network. */
export function useOnline(): boolean {
  return useSyncExternalStore(
    (listener) => {
      window.addEventListener("online", listener);
      window.addEventListener("offline", listener);
      return () => {
        window.removeEventListener("online", listener);
        window.removeEventListener("offline", listener);
      };
    },
    () => navigator.onLine,
    () => true,
  );
}

/** One thing at a time, with its failure kept until the next attempt. */
export function useAction(): {
  busy: boolean;
  error: FaregateError | undefined;
  run: (work: () => Promise<unknown>) => Promise<boolean>;
  reset: () => void;
} {
  const [state, setState] = useState<{ busy: boolean; error: FaregateError | undefined }>({
    busy: false,
    error: undefined,
  });
  const [alive] = useState({ yes: true, running: false });
  useEffect(() => {
    alive.yes = true;
    return () => {
      alive.yes = false;
    };
  }, [alive]);
  const run = useCallback(
    async (work: () => Promise<unknown>) => {
      // Two clicks may come before the first is drawn.
      if (alive.running) return false;
      alive.running = true;
      setState({ busy: true, error: undefined });
      try {
        await work();
        if (alive.yes) setState({ busy: false, error: undefined });
        return true;
      } catch (error) {
        const known = error instanceof FaregateError ? error : new FaregateError("other", 0, String(error));
        if (alive.yes) setState({ busy: false, error: known });
        return false;
      } finally {
        alive.running = false;
      }
    },
    [alive],
  );
  const reset = useCallback(() => setState({ busy: false, error: undefined }), []);
  return { ...state, run, reset };
}
