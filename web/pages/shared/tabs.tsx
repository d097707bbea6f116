import { useEffect, useSyncExternalStore, type ReactNode } from "react";

/** The part of the page that the address names: `#usage`. */
export function useTab<T extends string>(tabs: readonly T[]): T {
  const hash = useSyncExternalStore(
    (listener) => {
      window.addEventListener("hashchange", listener);
      return () => window.removeEventListener("hashchange", listener);
    },
    () => window.location.hash.slice(1).split("/")[0] ?? "",
  );
  return tabs.find((tab) => tab === hash) ?? (tabs[0] as T);
}

export function Tabs<T extends string>({
  tabs,
  current,
  names,
  label,
}: {
  tabs: readonly T[];
  current: T;
  names: Record<T, ReactNode>;
  label: string;
}) {
  return (
    <nav className="tabs" aria-label={label}>
      {tabs.map((tab) => (
        <a key={tab} href={`#${tab}`} aria-current={tab === current ? "page" : undefined}>
          {names[tab]}
        </a>
      ))}
    </nav>
  );
}

/** A title of the document's own for each part, so that history and screen readers tell them apart. */
export function useTitle(title: string): void {
  useEffect(() => {
    document.title = title;
  }, [title]);
}
