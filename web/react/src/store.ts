/** What the components share: each question is asked once, however many of them show its answer. */

import { FaregateClient, FaregateError } from "./client.js";
import { follow, type ServerEvent } from "./events.js";
import type { Credits, List, Notification, Standing } from "./types.js";

/** How a question stands. `data` stays while it is asked again, or while the gateway is out of reach. */
export interface Snapshot<T> {
  status: "loading" | "ready" | "error";
  data: T | undefined;
  error: FaregateError | undefined;
  /** It is being asked again. */
  refreshing: boolean;
}

const LOADING: Snapshot<never> = { status: "loading", data: undefined, error: undefined, refreshing: false };
/** Questions kept at a time; those that nobody shows any more go first. */
const MAX_RESOURCES = 64;
/** While the event stream is down the balance is asked for so often. */
const POLL_MS = 15_000;
/** Sums of usage are asked for again so often at most, however fast credits go: the API counts its calls. */
const USAGE_MS = 5_000;
/** The gateway's answer may be a second old, and a little longer on its way: an event of that time knows better. */
const ANSWER_AGE_MS = 3_000;

export class Resource<T> {
  #snapshot: Snapshot<T> = LOADING;
  #listeners = new Set<() => void>();
  #load: () => Promise<T>;
  #asking: Promise<void> | undefined;
  #again = false;
  readonly #onWatch: ((watched: boolean) => void) | undefined;

  constructor(load: () => Promise<T>, onWatch?: (watched: boolean) => void) {
    this.#load = load;
    this.#onWatch = onWatch;
  }

  get watched(): boolean {
    return this.#listeners.size > 0;
  }

  snapshot = (): Snapshot<T> => this.#snapshot;

  subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener);
    if (this.#listeners.size === 1) {
      this.#onWatch?.(true);
      void this.reload();
    }
    return () => {
      this.#listeners.delete(listener);
      if (this.#listeners.size === 0) this.#onWatch?.(false);
    };
  };

  /** Asks again. While it is being asked, once more afterwards: the answer under way may be older than the wish. */
  reload = (): Promise<void> => {
    if (this.#asking !== undefined) {
      this.#again = true;
      return this.#asking;
    }
    this.#asking = this.#ask().finally(() => {
      this.#asking = undefined;
      if (this.#again) {
        this.#again = false;
        void this.reload();
      }
    });
    return this.#asking;
  };

  set(data: T): void {
    this.#put({ status: "ready", data, error: undefined, refreshing: false });
  }

  update(change: (data: T) => T): void {
    if (this.#snapshot.data !== undefined) this.set(change(this.#snapshot.data));
  }

  async #ask(): Promise<void> {
    if (this.#snapshot.status !== "loading") this.#put({ ...this.#snapshot, refreshing: true });
    try {
      this.set(await this.#load());
    } catch (error) {
      const failure =
        error instanceof FaregateError ? error : new FaregateError("other", 0, error instanceof Error ? error.message : "");
      this.#put({ status: "error", data: this.#snapshot.data, error: failure, refreshing: false });
    }
  }

  #put(snapshot: Snapshot<T>): void {
    this.#snapshot = snapshot;
    for (const listener of [...this.#listeners]) listener();
  }
}

export type LiveState = "off" | "connecting" | "live" | "polling";

export class FaregateStore {
  readonly client: FaregateClient;
  #resources = new Map<string, Resource<unknown>>();
  #watching = 0;
  #unfollow: (() => void) | undefined;
  #poll: ReturnType<typeof setInterval> | undefined;
  #told: { at: number; credits: Credits } | undefined;
  #usageAt = 0;
  #usageTimer: ReturnType<typeof setTimeout> | undefined;
  #live: LiveState = "off";
  #liveListeners = new Set<() => void>();

  constructor(client: FaregateClient) {
    this.client = client;
  }

  /** The question of this key; `live` ones are kept up to date by the event stream while somebody shows them. */
  resource<T>(key: string, load: () => Promise<T>, live = false): Resource<T> {
    let found = this.#resources.get(key) as Resource<T> | undefined;
    if (found === undefined) {
      found = new Resource(load, live ? this.#watch : undefined);
      this.#make_room();
      this.#resources.set(key, found as Resource<unknown>);
    }
    return found;
  }

  credits(): Resource<Credits> {
    const load = async () => {
      const answer = await this.client.get<Credits>("/credits/check");
      const told = this.#told;
      return told !== undefined && Date.now() - told.at < ANSWER_AGE_MS ? { ...answer, ...told.credits } : answer;
    };
    return this.resource("credits", load, true);
  }

  standing(): Resource<Standing> {
    return this.resource("subscription", () => this.client.get<Standing>("/billing/subscription"), true);
  }

  notifications(): Resource<List<Notification>> {
    return this.resource(
      "notifications",
      () => this.client.get<List<Notification>>("/notifications?limit=50"),
      true,
    );
  }

  /** Asks everything again that is shown and begins with this name; without one, all of it. */
  refresh = (name = ""): void => {
    for (const [key, resource] of this.#resources) {
      if (key.startsWith(name) && resource.watched) void resource.reload();
    }
  };

  liveState = (): LiveState => this.#live;

  onLive = (listener: () => void): (() => void) => {
    this.#liveListeners.add(listener);
    return () => this.#liveListeners.delete(listener);
  };

  #make_room(): void {
    for (const [key, resource] of this.#resources) {
      if (this.#resources.size < MAX_RESOURCES) return;
      if (!resource.watched) this.#resources.delete(key);
    }
  }

  #watch = (watched: boolean): void => {
    this.#watching += watched ? 1 : -1;
    if (this.#watching > 0 && this.#unfollow === undefined) {
      this.#setLive("connecting");
      this.#unfollow = follow(this.client, { onEvent: this.#take, onState: this.#state });
    } else if (this.#watching === 0) {
      // A page that changes what it shows drops the last one just before it shows the next.
      queueMicrotask(() => {
        if (this.#watching > 0) return;
        this.#unfollow?.();
        this.#unfollow = undefined;
        this.#stopPolling();
        this.#setLive("off");
      });
    }
  };

  #state = (live: boolean): void => {
    if (this.#unfollow === undefined) return;
    if (live) {
      // What happened in between, and is in no event.
      if (this.#live === "polling") void this.#catchUp();
      this.#stopPolling();
      this.#setLive("live");
      return;
    }
    this.#setLive("polling");
    this.#poll ??= setInterval(() => void this.#catchUp(), POLL_MS);
  };

  /** Asks for the balance; more of it than before has come from somewhere. */
  async #catchUp(): Promise<void> {
    const credits = this.credits();
    const before = credits.snapshot().data?.available ?? Infinity;
    await credits.reload();
    if ((credits.snapshot().data?.available ?? 0) <= before) return;
    this.refresh("subscription");
    this.refresh("history");
  }

  #usageSoon(): void {
    const wait = Math.max(0, this.#usageAt + USAGE_MS - Date.now());
    this.#usageTimer ??= setTimeout(() => {
      this.#usageTimer = undefined;
      this.#usageAt = Date.now();
      this.refresh("usage");
    }, wait);
  }

  #stopPolling(): void {
    clearInterval(this.#poll);
    this.#poll = undefined;
  }

  #setLive(live: LiveState): void {
    this.#live = live;
    for (const listener of [...this.#liveListeners]) listener();
  }

  #take = ({ event, data }: ServerEvent): void => {
    let body: unknown;
    try {
      body = JSON.parse(data);
    } catch {
      return;
    }
    if (event === "credits") {
      const credits = this.credits();
      this.#told = { at: Date.now(), credits: body as Credits };
      credits.set({ ...credits.snapshot().data, ...(body as Credits) });
      this.#usageSoon();
    } else if (event === "subscription") {
      this.standing().set(body as Standing);
      this.refresh("history");
      // The plan, and when its credits end.
      this.refresh("credits");
    } else if (event === "notification") {
      const fresh = body as Notification;
      this.notifications().update((list) => ({
        ...list,
        data: [fresh, ...list.data.filter((known) => known.id !== fresh.id)],
      }));
    }
  };
}
