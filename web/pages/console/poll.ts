import { useEffect, useState } from "react";

/** Calls `ask` at once and then again and again, while the page is looked at. */
export function usePoll<T>(ask: (signal: AbortSignal) => Promise<T>, ms: number): { data: T | undefined; failed: boolean } {
  const [state, setState] = useState<{ data: T | undefined; failed: boolean }>({ data: undefined, failed: false });
  useEffect(() => {
    const stop = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    const round = async () => {
      if (!document.hidden) {
        try {
          const data = await ask(stop.signal);
          if (!stop.signal.aborted) setState({ data, failed: false });
        } catch {
          if (!stop.signal.aborted) setState((last) => ({ ...last, failed: true }));
        }
      }
      if (!stop.signal.aborted) timer = setTimeout(() => void round(), ms);
    };
    void round();
    return () => {
      stop.abort();
      clearTimeout(timer);
    };
  }, [ask, ms]);
  return state;
}
