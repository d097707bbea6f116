/** Server-sent events by fetch, because EventSource cannot send a token. */

import type { FaregateClient } from "./client.js";

export interface ServerEvent {
  event: string;
  data: string;
}

/** A line longer than this is not ours. */
const MAX_LINE_CHARS = 256 * 1024;
const FIRST_PAUSE_MS = 1_000;
const LONGEST_PAUSE_MS = 30_000;
/** A stream that says nothing for so long, not even a comment, has died. */
const SILENCE_MS = 90_000;

/** Takes a stream apart; what is not yet whole waits for more. */
export class EventParser {
  lastId = "";
  #rest = "";
  #endedWithCr = false;
  #event = "";
  #data: string[] = [];

  push(chunk: string): ServerEvent[] {
    // A line may end with CR here and LF in the next piece: that is one end, not two.
    const text = this.#endedWithCr && chunk.startsWith("\n") ? chunk.slice(1) : chunk;
    if (chunk !== "") this.#endedWithCr = chunk.endsWith("\r");
    const lines = (this.#rest + text).split(/\r\n|\n|\r/);
    this.#rest = lines.pop() ?? "";
    if (this.#rest.length > MAX_LINE_CHARS) throw new Error("an event is too long");
    const events: ServerEvent[] = [];
    for (const line of lines) {
      if (line === "") {
        if (this.#data.length > 0) events.push({ event: this.#event || "message", data: this.#data.join("\n") });
        this.#event = "";
        this.#data = [];
        continue;
      }
      const colon = line.indexOf(":");
      if (colon === 0) continue;
      const field = colon < 0 ? line : line.slice(0, colon);
      const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
      if (field === "event") this.#event = value;
      else if (field === "data") this.#data.push(value);
      else if (field === "id" && !value.includes("\0")) this.lastId = value;
    }
    return events;
  }
}

export interface Listener {
  onEvent: (event: ServerEvent) => void;
  /** Each time the stream is there, or is not there any more. */
  onState: (live: boolean) => void;
}

/** Follows the event stream until the answer's function is called; reconnects with growing pauses. */
export function follow(client: FaregateClient, listener: Listener): () => void {
  const stop = new AbortController();
  void run(client, listener, stop.signal);
  return () => stop.abort();
}

async function run(client: FaregateClient, listener: Listener, stop: AbortSignal): Promise<void> {
  let pause = FIRST_PAUSE_MS;
  let lastId = "";
  while (!stop.aborted) {
    const connection = new AbortController();
    const close = () => connection.abort();
    stop.addEventListener("abort", close, { once: true });
    let silence: ReturnType<typeof setTimeout> | undefined;
    const heard = () => {
      clearTimeout(silence);
      silence = setTimeout(close, SILENCE_MS);
    };
    try {
      heard();
      const headers: Record<string, string> = { accept: "text/event-stream" };
      if (lastId !== "") headers["last-event-id"] = lastId;
      const response = await client.open("/events", { headers, signal: connection.signal });
      if (response.body === null) throw new Error("no stream");
      const parser = new EventParser();
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      listener.onState(true);
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        heard();
        for (const event of parser.push(value)) {
          pause = FIRST_PAUSE_MS;
          listener.onEvent(event);
        }
        if (parser.lastId !== "") lastId = parser.lastId;
      }
    } catch {
      // Told by onState; the next attempt follows.
    } finally {
      clearTimeout(silence);
      stop.removeEventListener("abort", close);
    }
    if (stop.aborted) return;
    listener.onState(false);
    // Spread, so that a gateway that restarts is not met by everybody at once.
    await wait(pause * (0.5 + Math.random()), stop);
    pause = Math.min(pause * 2, LONGEST_PAUSE_MS);
  }
}

function wait(ms: number, stop: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(done, ms);
    function done() {
      clearTimeout(timer);
      stop.removeEventListener("abort", done);
      if (typeof window !== "undefined") window.removeEventListener("online", done);
      resolve();
    }
    stop.addEventListener("abort", done, { once: true });
    if (typeof window !== "undefined") window.addEventListener("online", done, { once: true });
  });
}
